#include "process_memory.h"

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>

namespace example {

namespace {

constexpr std::size_t kKib = 1024;

}  // namespace

std::size_t private_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    std::istringstream words(line);
    std::string word;
    std::size_t kib = 0;
    if (words >> word >> kib && word == "RssAnon:") return kib * kKib;
  }
  return 0;
}

Mapped mapped(std::span<const std::byte> memory) {
  const auto first = reinterpret_cast<std::uintptr_t>(memory.data());
  const std::uintptr_t last = first + memory.size();
  Mapped found;
  std::ifstream smaps("/proc/self/smaps");
  bool counts = false;
  for (std::string line; std::getline(smaps, line);) {
    std::uintptr_t begin = 0, end = 0;
    if (std::sscanf(line.c_str(), "%zx-%zx ", &begin, &end) == 2) {
      counts = begin < last && first < end;
      continue;
    }
    if (!counts) continue;
    std::istringstream words(line);
    std::string word;
    std::size_t kib = 0;
    if (!(words >> word >> kib)) continue;
    if (word == "Rss:") found.resident += kib * kKib;
    if (word == "Pss:") found.proportional += kib * kKib;
    if (word == "Anonymous:") found.copied += kib * kKib;
  }
  return found;
}

}  // namespace example
