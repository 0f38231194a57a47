// Settled: right after an adoption, leases are being re-registered; answers about holders wait for that moment.
//
// Threads: the loop's only.
#pragma once

#include <functional>
#include <utility>

#include "broker/base/loop.h"

namespace modelbroker {

class Settled {
 public:
  explicit Settled(Loop& loop) : loop_(loop) {}
  // Blocks were adopted: clients that lost their broker look for the next one every 100 ms.
  void begin() { until_ = loop_.clock().now() + kSettle; }
  void when(std::function<void()> answer) {
    const TimePoint now = loop_.clock().now();
    if (now >= until_) return answer();
    loop_.after(until_ - now, std::move(answer));
  }

 private:
  static constexpr std::chrono::milliseconds kSettle{250};
  Loop& loop_;
  TimePoint until_;
};

}  // namespace modelbroker
