#include "broker/cli/bench/worker.h"

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <sstream>

#include "broker/cli/json.h"
#include "broker/cli/output.h"
#include "cpp_client/broker.h"

namespace modelbroker::cli {
namespace {

using Clock = std::chrono::steady_clock;

void say(const Json& json) { std::cout << json.dump() << std::endl; }  // a line is an answer: flushed

double since(Clock::time_point began) { return std::chrono::duration<double>(Clock::now() - began).count(); }

unsigned touch(std::span<const Tensor> tensors) {
  unsigned found = 0;
  for (const Tensor& tensor : tensors) {
    for (std::size_t i = 0; i < tensor.bytes.size(); i += 4096) found |= static_cast<unsigned>(tensor.bytes[i]);
  }
  return found;
}

// PSS of the mapping that holds `address`, in bytes.
std::uint64_t memory_at(const void* address) {
  std::ifstream smaps("/proc/self/smaps");
  const auto wanted = reinterpret_cast<std::uintptr_t>(address);
  std::string line;
  bool counts = false;
  while (std::getline(smaps, line)) {
    std::uintptr_t begin = 0;
    std::uintptr_t end = 0;
    unsigned long long kib = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &begin, &end) == 2) {
      counts = begin <= wanted && wanted < end;
    } else if (counts && std::sscanf(line.c_str(), "Pss: %llu", &kib) == 1) {
      return kib * 1024;
    }
  }
  return 0;
}

}  // namespace

int run_bench_worker(const std::string& model) {
  auto broker = Broker::connect();
  if (!broker) return report(broker.error(), false);
  say({{"ready", true}});
  std::string line;
  std::getline(std::cin, line);  // all begin at once
  const auto began = Clock::now();
  const auto weights = broker->attach(model);
  if (!weights) return report(weights.error(), false);
  const double opened = since(began);
  const auto tensors = weights->tensors();
  if (!tensors) return report(tensors.error(), false);
  const unsigned found = touch(*tensors);
  say({{"opened", opened}, {"seconds", since(began)}, {"found", found}});
  while (std::getline(std::cin, line)) {
    const void* const first = tensors->empty() ? nullptr : static_cast<const void*>(tensors->front().bytes.data());
    say({{"memory", memory_at(first)}});
  }
  return kExitOk;
}

}  // namespace modelbroker::cli
