#include "broker/server/server.h"

#include <signal.h>
#include <sys/epoll.h>
#include <sys/stat.h>

#include <array>
#include <cerrno>

#include "broker/base/log.h"
#include "broker/base/sizes.h"
#include "broker/doors/gate.h"
#include "broker/doors/run_directory.h"
#include "broker/models/model_events.h"
#include "broker/models/recovery.h"
#include "broker/ram/room.h"
#include "shm/block_format.h"
#include "shm/instruments.h"
#include "shm/limits.h"
#include "shm/threads.h"

namespace modelbroker {
namespace {

constexpr std::chrono::seconds kStopPatience{2};  // for reads that may hang
constexpr std::array kSignals{SIGINT, SIGTERM, SIGHUP};

}  // namespace

Result<std::unique_ptr<Server>> Server::start(Os& os, const Clock& clock, const Config& config, Reload reload) {
  MODELBROKER_TRY(check_file_limit());
  ::umask(0077);
  ::signal(SIGPIPE, SIG_IGN);
  ::signal(SIGIO, SIG_IGN);  // somebody opens a block during the moment of our write lease
  MODELBROKER_ASSIGN(auto endpoint, wire::Endpoint::in(config.run_directory));
  MODELBROKER_ASSIGN(const auto group, group_of(config.group));
  const Rights rights(os.uid(), group);
  Gate::get().open(os, rights);
  MODELBROKER_ASSIGN(RunDirectory run_directory, RunDirectory::make(os, config.run_directory, group));
  MODELBROKER_ASSIGN(LockFile run_lock, lock_run_directory(os, config.run_directory));
  MODELBROKER_ASSIGN(auto loop, Loop::create(os, clock));
  std::unique_ptr<Server> server(new Server(std::move(loop), std::move(endpoint)));
  server->reload_ = std::move(reload);
  MODELBROKER_TRY(server->open(os, clock, config, rights, std::move(run_directory), std::move(run_lock)));
  server->announce_ready();
  server->pat_watchdog();
  return server;
}

Result<void> Server::open(Os& os, const Clock& clock, const Config& config, const Rights& rights,
                          RunDirectory run_directory, LockFile run_lock) {
  MODELBROKER_TRY(check_room(os, config.ram_directory, config.ram_budget));
  MODELBROKER_ASSIGN(BlockDirectory directory,
                     BlockDirectory::lock(os, config.ram_directory, config.instance, config.any_file_system));
  crash_point("adopt.locked");
  facts_.reset(new Facts{
      .env = Environment(os, clock, config), .workers = Workers(rights), .ram = RamStore(os, std::move(directory))});
  place_ = std::make_unique<Place>(os, *loop_, std::move(run_directory), std::move(run_lock),
                                   facts_->ram.directory.lock_file(), rights.group());
  facts_->env.started = clock.now();
  const std::string boot = random_token();
  for (std::size_t i = 0; i < facts_->env.boot_id.size(); ++i) {
    facts_->env.boot_id[i] = static_cast<std::uint8_t>(std::stoi(boot.substr(2 * i, 2), nullptr, 16));
  }
  MODELBROKER_TRY(watch_signals());  // before any thread is made, so that all threads block them

  const std::string state_path = config.run_directory + "/state.db";
  MODELBROKER_ASSIGN(auto state, StateDb::open(state_path));
  if (!state.warning.empty()) log_warning(state.warning);
  notes_ = std::make_unique<LoadNotes>(os, config.run_directory);
  MODELBROKER_TRY(notes_->open());
  MODELBROKER_ASSIGN(const Recovered recovered,
                     adopt_blocks({facts_->env, facts_->workers.rights, facts_->ram, facts_->models}, state.records));
  const RamBlocks::Totals totals = facts_->ram.blocks.totals();
  const std::uint64_t held = totals.made + totals.draining + facts_->ram.foreign.bytes;
  MODELBROKER_ASSIGN(const std::uint64_t limit, budget_of(os, config, held));
  facts_->ram.budget.set_limit(limit);

  crash_point("adopt.before_sockets");
  // libzmq aborts where it gets none: two contexts, and one for each kind of jobs.
  MODELBROKER_TRY(threads_left(2 * kThreadsOfAContext + Rooms::kKindsOfJobs, "serving"));
  const std::array<std::string, 3> sockets{endpoint_.broker_path(), endpoint_.events_path(), endpoint_.fds()};
  MODELBROKER_TRY(remove_stale_sockets(os, sockets));
  MODELBROKER_ASSIGN(events_, EventSocket::bind(endpoint_.events(), to_hex(facts_->env.boot_id)));
  rooms_ = std::make_unique<Rooms>(*facts_, *loop_, *events_, *notes_,
                                   Rooms::State{state_path, std::move(state.db), [this] { return place_->hold(); }});
  serve_requests();

  callers_ = std::make_unique<Callers>(
      facts_->env, facts_->workers, *loop_, *events_, endpoint_.fds(),
      Callers::Sessions{[this](SessionId session) { session_ended(session); },
                        [this](SessionId session) { return rooms_->loading.waits(session); }});
  MODELBROKER_ASSIGN(router_, Router::bind(
                                  *loop_, endpoint_.broker(),
                                  [this](const wire::Request& request, const Router::Sender& sender) {
                                    return callers_->find(request, sender);
                                  },
                                  [this](Session& session, const wire::Request& request, std::shared_ptr<Call> call) {
                                    dispatcher_.dispatch(session, request, std::move(call));
                                  }));
  // Last: who can connect here can also ask there.
  MODELBROKER_ASSIGN(fd_socket_,
                     FdSocket::listen(facts_->env, facts_->workers, facts_->ram, *loop_, *events_, endpoint_.fds(),
                                      [this](SessionId session) { session_ended(session); }));
  for (const std::string& path : sockets) MODELBROKER_TRY(open_socket_to_group(os, path, rights.group()));
  place_->add_socket(endpoint_.events_path(), [this] { return events_->listen(); });
  place_->add_socket(endpoint_.broker_path(), [this] { return router_->listen(); });
  place_->add_socket(endpoint_.fds(), [this] { return fd_socket_->open_listener(); });

  for (const auto& [block, reason] : recovered.damaged) {
    wire::EventData damaged;
    damaged.block = block;
    damaged.reason = reason;
    damaged.outcome = "removed";
    events_->publish("model.damaged", damaged);
  }
  rooms_->keeper.save(recovered.models, recovered.blocks);
  for (const std::string& id : recovered.superseded) {
    if (RamBlock* const block = facts_->ram.blocks.find(id)) rooms_->reaper.drain(*block);
  }
  if (totals.made + totals.draining > 0) rooms_->settled.begin();
  rooms_->reaper.take_over_draining();
  log_info("serving " + endpoint_.broker() + ", budget " + format_size(limit) + " in " + config.ram_directory +
           (os.features().collapse && config.huge_pages ? ", 2 MiB pages" : ", 4 KiB pages"));
  if (const auto most = file_size_limit(); most && *most < limit) {
    log_warning("files of this process may have at most " + format_size(*most) +
                ": models whose block is larger are refused (to raise it: " + file_size_advice() + ")");
  }
  if (recovered.adopted + recovered.draining + recovered.garbage > 0) {
    log_info("adopted " + std::to_string(recovered.adopted) + " blocks and " + std::to_string(recovered.draining) +
             " that drain (" + format_size(held) + "), removed " + std::to_string(recovered.garbage) +
             " unfinished ones");
  }
  callers_->end_silent();
  place_->keep([this] { rooms_->keeper.look(); });
  rooms_->expiry.look();
  rooms_->admission.limit_changed();  // it may have been lowered since
  rooms_->scrubber.look();
  return {};
}

void Server::serve_requests() {
  session_service_ = std::make_unique<SessionService>(
      facts_->env, endpoint_, *events_, rooms_->leases, [this](const Session& session) {
        session.token.empty() ? session_ended(session.id) : fd_socket_->close_session(session.id);
      });
  using enum Dispatcher::Kind;
  Dispatcher& to = dispatcher_;
  to.on("session.hello", kLook, *session_service_, &SessionService::hello);
  to.on("session.ping", kLook, *session_service_, &SessionService::ping);
  to.on("session.bye", kChange, *session_service_, &SessionService::bye);
  to.on("lease.restate", kChange, rooms_->leases, &LeaseService::restate);
  to.on("model.attach", kChange, rooms_->leases, &LeaseService::attach);
  to.on("model.detach", kChange, rooms_->leases, &LeaseService::detach);
  to.on("model.load_model", kChange, rooms_->model_service, &ModelService::load);
  to.on("model.unload_model", kChange, rooms_->model_service, &ModelService::unload);
  to.on("model.cancel", kChange, rooms_->model_service, &ModelService::cancel);
  to.on("model.pin", kChange, rooms_->model_service, &ModelService::pin);
  to.on("model.unpin", kChange, rooms_->model_service, &ModelService::unpin);
  to.on("model.list", kLook, rooms_->model_service, &ModelService::list);
  to.on("model.get", kLook, rooms_->model_service, &ModelService::get);
  to.on("model.get_model_info", kLook, rooms_->model_service, &ModelService::get_model_info);
  to.on("cache.status", kLook, rooms_->cache, &CacheService::status);
  to.on("cache.scrub", kChange, rooms_->cache, &CacheService::scrub);
  to.on("events.snapshot", kLook, rooms_->cache, &CacheService::snapshot);
}

Result<void> Server::watch_signals() {
  auto signals = facts_->env.os.signal_fd(kSignals);
  if (!signals) return fail_errno(signals.error().number, "listening for signals");
  signals_ = std::move(*signals);
  MODELBROKER_ASSIGN([[maybe_unused]] const WatchId id, loop_->watch(signals_.get(), EPOLLIN, [this](std::uint32_t) {
    if (const auto number = facts_->env.os.read_signal(signals_.get())) {
      if (*number == SIGHUP) return reload();
      notifier_.send("STOPPING=1\nSTATUS=stopping");
      log_info(std::string("stopping: ") + (*number == SIGINT ? "SIGINT" : "SIGTERM"));
      loop_->stop();
    }
  }));
  return {};
}

Result<void> Server::run() {
  auto outcome = loop_->run();
  (void)place_->hold();  // what is removed from here on is ours
  const std::optional<Error>& displaced = place_->displaced();
  if (outcome && displaced) outcome = tl::unexpected(*displaced);
  events_->publish("broker.stopping", {});
  place_->remove_sockets();
  crash_point("stop.sockets_gone");
  fd_socket_.reset();
  hangs_ = !rooms_->scrubber.stop(kStopPatience);
  hangs_ = !rooms_->block_loads.stop(kStopPatience) || hangs_;
  hangs_ = !rooms_->jobs.stop(kStopPatience) || hangs_;
  stop_blocks();
  crash_point("stop.before_flush");
  if (!displaced) notes_->strike_all();
  if (!displaced) rooms_->keeper.flush();  // else it is the other broker's database
  crash_point("stop.flushed");
  // Whoever still waits is told, while there is a socket to tell it by.
  router_->stopping();
  if (hangs_) {
    log_warning("a read of a file hangs: leaving it behind");
    router_.release()->leave();
    return outcome;
  }
  loop_->discard();
  rooms_.reset();
  notes_.reset();
  router_.reset();
  events_.reset();
  return outcome;
}

// Mapped memory outlives its name: holders keep what they have. By the folder, not by the books: a load may have
// been published after the loop's last turn.
void Server::stop_blocks() {
  if (facts_->env.config.keep_on_stop || place_->displaced()) return;
  const auto listing = facts_->ram.directory.list(facts_->env.os);
  if (!listing) return log_error(listing.error().message);
  for (const BlockName& name : listing->doubles) {
    if (auto removed = facts_->ram.directory.remove_double(facts_->env.os, name); !removed)
      log_error(removed.error().message);
  }
  std::uint64_t freed = 0;
  facts_->models.observe({});  // all of it is written at once, and nobody is told of each
  for (const BlockName& name : listing->blocks) {
    const auto removed = facts_->ram.directory.remove(facts_->env.os, name);
    if (!removed) {
      log_error(removed.error().message);
      continue;
    }
    freed += *removed;
    crash_point("stop.block_removed");
    RamBlock* const block = facts_->ram.blocks.find(name.id());
    if (block == nullptr) continue;
    for (const ModelEntry* const model : facts_->models.with_block(*block)) {
      facts_->models.apply({.why = Why::kUnloaded, .edits = {{.id = model->id, .without = model->names}}});
    }
    facts_->ram.blocks.erase(name.id());
  }
  facts_->models.remembered().clear();
  if (freed > 0) log_info("freed " + format_size(freed));
}

Server::~Server() { Gate::get().close(); }

// The only end of a session: release, hang-up, death and silence all come here.
void Server::session_ended(SessionId session) {
  const Session* const found = facts_->workers.sessions.find(session);
  if (found == nullptr) return;
  const Peer peer = found->peer;
  const LeaseBook::Ended ended = rooms_->leases.end_all(*found);
  if (ended.leases > 0) {
    log_info("session of pid " + std::to_string(peer.pid) + " ended with " + std::to_string(ended.leases) + " leases");
  }
  facts_->workers.sessions.close(session);
  rooms_->loading.session_ended(session);
  rooms_->scrubber.session_ended(session);
  if (router_) router_->forget(session);
  callers_->ended(session);
  events_->publish("session.ended", event_of(peer));
  rooms_->leases.let_go(ended.blocks);
}

}  // namespace modelbroker
