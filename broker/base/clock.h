// Clock: where the broker gets time from, so that tests can turn it. Monotonic; runs through suspend.
#pragma once

#include <time.h>

#include <chrono>

#include "shm/os.h"

namespace modelbroker {

using Duration = std::chrono::nanoseconds;
struct BootClock {  // CLOCK_BOOTTIME as a std::chrono clock's time line
  using duration = Duration;
  using rep = duration::rep;
  using period = duration::period;
  using time_point = std::chrono::time_point<BootClock>;
  static constexpr bool is_steady = true;  // NOLINT(readability-identifier-naming): the standard's name
};
using TimePoint = BootClock::time_point;

class Clock {
 public:
  virtual ~Clock() = default;
  [[nodiscard]] virtual TimePoint now() const noexcept = 0;
};

class SystemClock final : public Clock {
 public:
  [[nodiscard]] TimePoint now() const noexcept override {
    timespec value{};
    ::clock_gettime(CLOCK_BOOTTIME, &value);
    return TimePoint(std::chrono::seconds(value.tv_sec) + Duration(value.tv_nsec));
  }
};

// The same time from an Os: a broker has one source of it, which a test may bend.
class OsClock final : public Clock {
 public:
  explicit OsClock(Os& os) : os_(os) {}
  [[nodiscard]] TimePoint now() const noexcept override {
    return TimePoint(Duration(static_cast<Duration::rep>(os_.boottime_ns())));
  }

 private:
  Os& os_;
};

}  // namespace modelbroker
