#include "process_memory.h"

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

Mapped mapped(const std::set<const void*>& addresses) {
  Mapped found;
  std::ifstream smaps("/proc/self/smaps");
  bool counts = false;
  for (std::string line; std::getline(smaps, line);) {
    void* begin = nullptr;
    void* end = nullptr;
    if (std::sscanf(line.c_str(), "%p-%p ", &begin, &end) == 2) {
      const auto first = addresses.lower_bound(begin);
      counts = first != addresses.end() && *first < end;
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
