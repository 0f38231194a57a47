// Loop: the one thread that owns all of the broker's state.
//
// Everything that happens is an event, handled to its end before the next: a message, a packet, a death
// (pidfd), a timer, a finished job. Handlers change the books and return; they never wait. It polls two
// things: one ZeroMQ socket's descriptor and one epoll descriptor for all else. The former is edge-triggered: it tells
// of what comes after a receive has found nothing, so each turn ends with such a receive, or the next one does not
// wait. Threads: all from the loop's own thread, but post() and stop(), which any thread may call.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "broker/base/clock.h"
#include "shm/error.h"
#include "shm/fd.h"
#include "shm/os.h"

namespace modelbroker {

using WatchId = std::uint64_t;
using TimerId = std::pair<TimePoint, std::uint64_t>;

class Loop {
 public:
  using Handler = std::function<void()>;
  using FdHandler = std::function<void(std::uint32_t events)>;

  [[nodiscard]] static Result<std::unique_ptr<Loop>> create(Os& os, const Clock& clock);
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;

  [[nodiscard]] const Clock& clock() const noexcept { return clock_; }

  // Calls `handler` whenever `fd` has `events` (EPOLLIN, ...), until unwatch(). The caller keeps the fd open.
  [[nodiscard]] Result<WatchId> watch(int fd, std::uint32_t events, FdHandler handler);
  void unwatch(WatchId id);  // idempotent; may be called from the handler itself

  TimerId after(Duration delay, Handler handler);
  void cancel(const TimerId& timer);  // idempotent

  void post(Handler handler);

  // The ZeroMQ socket's descriptor (ZMQ_FD; -1: none any more): `receive_one` handles one message and returns false
  // when there is none.
  void set_messages(int zmq_fd, std::function<bool()> receive_one);

  // Until stop().
  [[nodiscard]] Result<void> run();
  // Waits for the next event or timer, and handles what is due.
  [[nodiscard]] Result<void> turn();
  void stop();
  // After run(): drops what was still to be done, while those whom it would have answered are there.
  void discard();

 private:
  Loop(Os& os, const Clock& clock) : os_(os), clock_(clock) {}
  [[nodiscard]] int wait_ms() const;
  void run_timers();
  void run_posted();
  void run_descriptors();
  [[nodiscard]] bool receive_some();

  Os& os_;
  const Clock& clock_;
  Fd epoll_, wake_;
  struct Watch {
    int fd = -1;
    std::shared_ptr<FdHandler> handler;
  };
  std::map<WatchId, Watch> watches_;
  std::map<TimerId, Handler> timers_;
  std::uint64_t next_id_ = 1;
  int messages_ = -1;
  std::function<bool()> receive_one_;
  bool more_messages_ = true;  // not all of them are received
  bool stopping_ = false;

  std::mutex mutex_;
  std::vector<Handler> posted_;  // guarded by mutex_
};

}  // namespace modelbroker
