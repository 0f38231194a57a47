// Deadline: when a call must have come to its end; or never. Threads: a value.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

#include "cpp_client/options.h"

namespace modelbroker::client {

class Deadline {
 public:
  using Clock = std::chrono::steady_clock;
  // What is longer is as good as this, and no sum with it overflows.
  static constexpr Timeout kLongest = std::chrono::hours(24 * 365 * 100);
  // Zero: never.
  explicit Deadline(Timeout timeout)
      : at_(timeout.count() > 0 ? Clock::now() + std::min(timeout, kLongest) : Clock::time_point::max()),
        timeout_(timeout) {}

  [[nodiscard]] bool never() const { return at_ == Clock::time_point::max(); }
  [[nodiscard]] bool passed() const { return Clock::now() >= at_; }
  [[nodiscard]] Timeout timeout() const { return timeout_; }
  // What is left, rounded up, but at most `most`.
  [[nodiscard]] Timeout left(Timeout most) const {
    if (never()) return most;
    return std::clamp(std::chrono::ceil<Timeout>(at_ - Clock::now()), Timeout{0}, most);
  }
  // The sooner of this one and `most` from now; an end in any case.
  [[nodiscard]] Deadline at_most(Timeout most) const { return Deadline(std::max(left(most), Timeout{1})); }
  // For the wire: 0 means never, so what is left is at least 1.
  [[nodiscard]] std::uint64_t milliseconds() const {
    if (never()) return 0;
    return static_cast<std::uint64_t>(std::max(left(Timeout::max() / 2), Timeout{1}).count());
  }

 private:
  Clock::time_point at_;
  Timeout timeout_;
};

}  // namespace modelbroker::client
