// Notifier: tells a service manager how we are, by the protocol of sd_notify(3), without its library.
//
// Threads: one at a time. Failure: none; a manager that does not listen changes nothing.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "broker/base/clock.h"
#include "shm/fd.h"

namespace modelbroker {

class Notifier {
 public:
  // From NOTIFY_SOCKET; without it nothing is sent.
  Notifier();

  // Lines such as "READY=1\nSTATUS=serving". Never waits.
  void send(std::string_view lines) const noexcept;
  // How often WATCHDOG=1 must be sent, if it is wanted of this process (WATCHDOG_USEC, WATCHDOG_PID).
  [[nodiscard]] std::optional<Duration> watchdog() const noexcept { return watchdog_; }

 private:
  std::string address_;  // as in sun_path: a leading zero byte for the abstract kind
  Fd socket_;
  std::optional<Duration> watchdog_;
};

}  // namespace modelbroker
