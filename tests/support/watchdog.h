// Watchdog: ends the whole process if it outlives a generous limit, so that a hang is a failure with a
// name. It is no assertion on speed. A forked child has none: see child.h.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <latch>
#include <mutex>
#include <stop_token>
#include <thread>

namespace modelbroker::testing {

class Watchdog {
 public:
  explicit Watchdog(std::chrono::seconds limit = std::chrono::seconds(240))
      : thread_([this, limit](const std::stop_token& stop) { watch(stop, limit); }) {
    // A child that is forked while another thread allocates may wait for ever for the sanitizer's allocator.
    ready_.wait();
  }

 private:
  void watch(const std::stop_token& stop, std::chrono::seconds limit) {
    std::mutex mutex;
    std::condition_variable_any stopped;
    std::unique_lock lock(mutex);
    ready_.count_down();
    stopped.wait_for(lock, stop, limit, [] { return false; });
    if (stop.stop_requested()) return;
    std::fprintf(stderr, "watchdog: the test still ran after %lld s\n", static_cast<long long>(limit.count()));
    std::abort();
  }

  std::latch ready_{1};
  std::jthread thread_;
};

}  // namespace modelbroker::testing
