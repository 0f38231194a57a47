// A clock that stands still until a test turns it, and a loop's turns by it.
#pragma once

#include <chrono>
#include <memory>
#include <stdexcept>

#include "broker/base/loop.h"

namespace modelbroker::testing {

class StandingClock final : public Clock {
 public:
  [[nodiscard]] TimePoint now() const noexcept override { return now_; }
  void turn(Duration by) { now_ += by; }

 private:
  TimePoint now_{std::chrono::hours(1000)};
};

// Turns until nothing is due any more: what a turn posts is done in one of the next.
inline void settle(Loop& loop) {
  for (int turn = 0; turn < 4; ++turn) {
    loop.post([] {});  // with a clock that stands still a turn would wait for ever
    if (const auto turned = loop.turn(); !turned) throw std::runtime_error(turned.error().message);
  }
}

}  // namespace modelbroker::testing
