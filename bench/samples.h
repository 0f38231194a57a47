// Samples of a benchmark: taken one after another for a count ("20000") or a time ("5s"), then written.
//
// They go to standard output as they are, pairs of 64-bit numbers: when it began (CLOCK_MONOTONIC) and how long it
// took, in nanoseconds. So whoever reads them can lay them beside what else happened then. Threads: each its own.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

namespace modelbroker::bench {

using Clock = std::chrono::steady_clock;

[[noreturn]] inline void die(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  std::exit(1);
}

struct Amount {
  std::uint64_t count = ~std::uint64_t{0};
  std::chrono::nanoseconds time = std::chrono::hours(24);

  static Amount parse(const std::string& text) {
    char* end = nullptr;
    const double number = std::strtod(text.c_str(), &end);
    const bool seconds = std::string(end) == "s";
    if (end == text.c_str() || number <= 0 || (!seconds && *end != 0)) die("'" + text + "': say 20000 or 5s");
    Amount amount;
    if (seconds) {
      amount.time = std::chrono::nanoseconds(static_cast<std::int64_t>(number * 1e9));
    } else {
      amount.count = static_cast<std::uint64_t>(number);
    }
    return amount;
  }
};

struct Sample {
  std::int64_t began = 0, took = 0;
};

// `once` does it, `after` cleans up and is not measured.
template <class Once, class After>
std::vector<Sample> take(const Amount& amount, Once once, After after) {
  constexpr int kWarmUp = 20;
  for (int i = 0; i < kWarmUp; ++i) {
    once();
    after();
  }
  std::vector<Sample> samples;
  samples.reserve(std::size_t{1} << 20U);
  const auto end = Clock::now() + amount.time;
  while (samples.size() < amount.count) {
    const auto began = Clock::now();
    if (began >= end) break;
    once();
    samples.push_back({.began = began.time_since_epoch().count(), .took = (Clock::now() - began).count()});
    after();
  }
  return samples;
}

template <class Once>
std::vector<Sample> take(const Amount& amount, Once once) {
  return take(amount, once, [] {});
}

// `each`, in so many threads at once, does requests and says how many. Prints how many in all, and the seconds.
template <class Each>
void write_rate(int count, Each each) {
  std::atomic<std::uint64_t> requests{0};
  const auto began = Clock::now();
  std::vector<std::jthread> threads;
  threads.reserve(static_cast<std::size_t>(count));
  for (int i = 0; i < count; ++i) threads.emplace_back([&] { requests += each(); });
  threads.clear();
  std::printf("%lu %.6f\n", requests.load(), std::chrono::duration<double>(Clock::now() - began).count());
}

inline void write(const std::vector<Sample>& samples) {
  if (std::fwrite(samples.data(), sizeof(Sample), samples.size(), stdout) != samples.size()) die("standard output");
}

}  // namespace modelbroker::bench
