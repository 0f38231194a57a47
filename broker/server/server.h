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

#include "broker/base/jobs.h"
#include "broker/doors/event_socket.h"
#include "broker/doors/fd_socket.h"
#include "broker/doors/router.h"
#include "broker/doors/run_directory.h"
#include "broker/models/admission.h"
#include "broker/models/books.h"
#include "broker/models/expiry.h"
#include "broker/models/load_notes.h"
#include "broker/models/loads.h"
#include "broker/models/reaper.h"
#include "broker/models/scrubber.h"
#include "broker/models/state_keeper.h"
#include "broker/server/notify.h"
#include "shm/file_mark.h"
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
  // then frees or keeps the blocks as configured.
  [[nodiscard]] Result<void> run();
  // After run(): a read hangs, and its thread with it. Do not destroy this, nor the Os; end the process.
  [[nodiscard]] bool hangs() const noexcept { return hangs_; }
  void request_stop() { loop_->stop(); }

 private:
  Server(std::unique_ptr<Loop> loop, wire::Endpoint endpoint, RunDirectory run_directory, LockFile run_lock)
      : loop_(std::move(loop)),
        endpoint_(std::move(endpoint)),
        run_directory_(std::move(run_directory)),
        run_lock_(std::move(run_lock)) {}

  // server.cc
  [[nodiscard]] Result<void> open(Os& os, const Clock& clock, const Config& config, const Rights& rights);
  [[nodiscard]] Result<void> watch_signals();
  void stop_blocks();
  void session_ended(SessionId session);
  void leases_ended(const std::vector<std::string>& blocks);
  void grant_lease(const Session& session, std::uint64_t number, const std::string& model,
                   const std::vector<std::string>& blocks);
  LeaseBook::Ended end_leases(const Session& session);
  [[nodiscard]] Result<Session*> find_session(const wire::Request& request, const Router::Sender& sender);
  void add_groups(Peer& peer, int socket) const;
  void watch_plain(const Session& session);
  void end_silent_peers();

  // upkeep.cc
  // A socket's file, and how to make it again.
  struct Door {
    std::string path;
    std::function<Result<void>()> open;
    FileMark mark;
  };
  [[nodiscard]] std::array<std::string, 3> sockets() const;
  [[nodiscard]] Result<void> remove_stale_sockets();
  void add_door(const std::string& path, std::function<Result<void>()> open);
  [[nodiscard]] Result<void> hold_place();
  [[nodiscard]] Result<void> hold_lock(LockFile& lock);
  [[nodiscard]] Result<void> hold_doors();
  void look_at_place();
  void remove_doors();

  // service.cc
  void announce_ready();
  void pat_watchdog();
  void reload();
  void take_over(Reloaded fresh, std::uint64_t limit);

  // handlers.cc
  void dispatch(Session& session, const wire::Request& request, Ticket ticket);
  template <class M, class R>
  void on(std::string_view type, void (Server::*handler)(Session&, const M&, const Reply<R>&), bool is_change = false);
  void register_handlers();
  void hello(Session& session, const wire::Empty& data, const Reply<wire::SessionHelloReply>& reply);
  void ping(Session& session, const wire::Empty& data, const Reply<wire::SessionPingReply>& reply);
  void bye(Session& session, const wire::Empty& data, const Reply<wire::SessionByeReply>& reply);
  void restate(Session& session, const wire::Restate& data, const Reply<wire::RestateReply>& reply);
  void status(Session& session, const wire::Empty& data, const Reply<wire::StatusReply>& reply);
  [[nodiscard]] wire::StatusReply status_now() const;
  void snapshot(Session& session, const wire::Empty& data, const Reply<wire::EventsSnapshotReply>& reply);
  // Answers who asks after holders: right after an adoption a moment later, for their leases are being stated again.
  void when_settled(std::function<void()> answer);

  // model_handlers.cc
  void load(Session& session, const wire::LoadModel& data, const Reply<wire::LoadModelReply>& reply);
  void unload(Session& session, const wire::UnloadModel& data, const Reply<wire::UnloadModelReply>& reply);
  [[nodiscard]] wire::ModelListReply list_models(uid_t uid) const;
  void list(Session& session, const wire::Empty& data, const Reply<wire::ModelListReply>& reply);
  void get(Session& session, const wire::ModelName& data, const Reply<wire::ModelGetReply>& reply);
  void pin(Session& session, const wire::ModelName& data, const Reply<wire::PinReply>& reply);
  void unpin(Session& session, const wire::ModelName& data, const Reply<wire::PinReply>& reply);
  void cancel(Session& session, const wire::ModelName& data, const Reply<wire::CancelReply>& reply);
  void scrub(Session& session, const wire::Scrub& data, const Reply<wire::ScrubReply>& reply);
  void get_model_info(Session& session, const wire::GetModelInfo& data, const Reply<wire::GetModelInfoReply>& reply);
  [[nodiscard]] std::vector<std::string> names_meant(const Resident& resident, const std::string& model) const;
  void set_pinned(const Session& session, const std::string& model, bool pinned, const Reply<wire::PinReply>& reply);
  [[nodiscard]] Result<Resident*> require(const Session& session, const std::string& model);
  [[nodiscard]] Result<Resident*> require_own(const Session& session, const std::string& model);
  [[nodiscard]] Result<Loads::Ask> ask_for(Session& session, const std::string& path, const std::string& file);
  void forget(const std::vector<std::string>& names);
  [[nodiscard]] Result<bool> forget_evicted(const Session& session, const std::string& model);
  [[nodiscard]] wire::ModelInfo describe(const Resident& resident, uid_t uid) const;
  [[nodiscard]] static bool is_path(std::string_view model) { return model.starts_with('/'); }

  // attach_handlers.cc
  void attach(Session& session, const wire::Attach& data, const Reply<wire::AttachReply>& reply);
  void attach_by_load(Loads::Ask ask, const Reply<wire::AttachReply>& reply, const std::string& evicted);
  // `lease`: the number that the client chose; 0: the next.
  [[nodiscard]] wire::AttachReply grant(Session& session, std::uint64_t lease, Resident& resident,
                                        const std::string& model, const std::string& outcome);
  void detach(Session& session, const wire::Detach& data, const Reply<wire::DetachReply>& reply);

  struct Handler {
    std::function<void(Session&, const wire::Request&, Ticket)> serve;
    bool is_change = false;
  };

  // In the order of their making; destroyed in reverse, so that jobs end before what they use.
  std::unique_ptr<Loop> loop_;
  wire::Endpoint endpoint_;
  RunDirectory run_directory_;
  LockFile run_lock_;
  std::unique_ptr<Books> books_;
  std::map<std::string, Handler, std::less<>> handlers_;
  Fd signals_;
  const Notifier notifier_;
  Reload reload_;
  bool reloading_ = false, reload_again_ = false;
  TimePoint settled_at_;
  std::map<SessionId, std::pair<Fd, WatchId>> plain_peers_;
  std::unique_ptr<EventSocket> events_;
  std::unique_ptr<Jobs> jobs_;
  std::unique_ptr<StateKeeper> keeper_;
  std::unique_ptr<Reaper> reaper_;
  std::unique_ptr<Admission> admission_;
  std::unique_ptr<Expiry> expiry_;
  std::unique_ptr<LoadNotes> notes_;
  std::unique_ptr<Loads> loads_;
  std::unique_ptr<Scrubber> scrubber_;
  std::unique_ptr<FdSocket> fd_socket_;
  std::unique_ptr<Router> router_;
  std::vector<Door> doors_;  // in the order of their opening
  bool hangs_ = false;
  std::optional<Error> displaced_;  // another broker has our lock
};

}  // namespace modelbroker
