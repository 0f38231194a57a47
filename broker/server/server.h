// Server: one running broker: takes its locks, adopts what an earlier one left, serves, and stops cleanly.
//
// Threads: start(), run() and the destructor on one thread, which becomes the loop's; request_stop() on any.
// Failure: start() leaves nothing behind but the lock files, which are never removed.
#pragma once

#include <array>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "broker/api/dispatcher.h"
#include "broker/api/session_service.h"
#include "broker/doors/callers.h"
#include "broker/doors/event_socket.h"
#include "broker/doors/fd_socket.h"
#include "broker/doors/place.h"
#include "broker/doors/router.h"
#include "broker/doors/run_directory.h"
#include "broker/server/notify.h"
#include "broker/server/rooms.h"
#include "shm/lock_file.h"
#include "wire/endpoint.h"

namespace modelbroker {

// The budget that `config` says, or that the machine gives; failed_precondition where it cannot be.
[[nodiscard]] Result<std::uint64_t> budget_of(Os& os, const Config& config, std::uint64_t held);

class Server {
 public:
  // `reload` reads the configuration again at SIGHUP.
  [[nodiscard]] static Result<std::unique_ptr<Server>> start(Os& os, const Clock& clock, const Config& config,
                                                             Reload reload = {});
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // Serves until SIGINT, SIGTERM or request_stop(); SIGHUP: reads the configuration again.
  // Then frees or keeps the blocks as configured.
  [[nodiscard]] Result<void> run();
  // After run(): a read hangs, and its thread with it. Do not destroy this, nor the Os; end the process.
  [[nodiscard]] bool hangs() const noexcept { return hangs_; }
  void request_stop() { loop_->stop(); }

 private:
  Server(std::unique_ptr<Loop> loop, wire::Endpoint endpoint)
      : loop_(std::move(loop)), endpoint_(std::move(endpoint)) {}

  // server.cc
  [[nodiscard]] Result<void> open(Os& os, const Clock& clock, const Config& config, const Rights& rights,
                                  RunDirectory run_directory, LockFile run_lock);
  [[nodiscard]] Result<void> watch_signals();
  void stop_blocks();
  void session_ended(SessionId session);

  // service.cc
  void announce_ready();
  void pat_watchdog();
  void reload();
  void take_over(Reloaded fresh, std::uint64_t limit);

  // Which handler of which service each request goes to.
  void serve_requests();

  // In the order of their making; destroyed in reverse, so that jobs end before what they use.
  std::unique_ptr<Loop> loop_;
  wire::Endpoint endpoint_;
  std::unique_ptr<Facts> facts_;
  std::unique_ptr<Place> place_;
  Fd signals_;
  const Notifier notifier_;
  Reload reload_;
  bool reloading_ = false, reload_again_ = false;
  std::unique_ptr<EventSocket> events_;
  std::unique_ptr<LoadNotes> notes_;
  std::unique_ptr<Rooms> rooms_;
  std::unique_ptr<SessionService> session_service_;
  Dispatcher dispatcher_;
  std::unique_ptr<Callers> callers_;
  std::unique_ptr<FdSocket> fd_socket_;
  std::unique_ptr<Router> router_;
  bool hangs_ = false;
};

}  // namespace modelbroker
