// The table of requests, and those about sessions and the broker itself.
#include <unistd.h>

#include <algorithm>

#include "broker/models/model_events.h"
#include "broker/server/server.h"
#include "modelbroker_version.h"
#include "shm/block_format.h"
#include "shm/text.h"

namespace modelbroker {
template <class M, class R>
void Server::on(std::string_view type, void (Server::*handler)(Session&, const M&, const Reply<R>&), bool is_change) {
  const auto serve = [this, handler](Session& session, const wire::Request& request, Ticket ticket) {
    const Reply<R> reply(std::move(ticket));
    const auto data = request.data<M>();
    if (!data) return reply.error(data.error());
    (this->*handler)(session, *data, reply);
  };
  handlers_.emplace(type, Handler{serve, is_change});
}

void Server::register_handlers() {
  on("session.hello", &Server::hello);
  on("session.ping", &Server::ping);
  on("cache.status", &Server::status);
  on("events.snapshot", &Server::snapshot);
  on("model.list", &Server::list);
  on("model.get", &Server::get);
  on("model.get_model_info", &Server::get_model_info);
  constexpr bool kIsChange = true;
  on("session.bye", &Server::bye, kIsChange);
  on("lease.restate", &Server::restate, kIsChange);
  on("model.load_model", &Server::load, kIsChange);
  on("model.unload_model", &Server::unload, kIsChange);
  on("model.attach", &Server::attach, kIsChange);
  on("model.detach", &Server::detach, kIsChange);
  on("model.pin", &Server::pin, kIsChange);
  on("model.unpin", &Server::unpin, kIsChange);
  on("model.cancel", &Server::cancel, kIsChange);
  on("cache.scrub", &Server::scrub, kIsChange);
}

void Server::dispatch(Session& session, const wire::Request& request, Ticket ticket) {
  const auto handler = handlers_.find(request.type());
  if (handler != handlers_.end()) {
    if (handler->second.is_change) ticket->remember_answer();
    return handler->second.serve(session, request, std::move(ticket));
  }
  const Error error{ErrorCode::kUnimplemented,
                    "'" + printable(request.type(), 64) + "' is not served by modelbroker " + kVersion};
  ticket->answer(wire::encode_error(ticket->to(), error));
}

void Server::hello(Session& session, const wire::Empty&, const Reply<wire::SessionHelloReply>& reply) {
  wire::SessionHelloReply hello;
  hello.version = kVersion;
  hello.boot_id = to_hex(books_->boot_id);
  hello.instance = books_->config.instance;
  hello.fds = endpoint_.fds();
  hello.events = endpoint_.events_path();
  hello.ram_directory = books_->config.ram_directory;
  hello.uid = session.peer.uid;
  hello.pid = static_cast<std::uint64_t>(session.peer.pid);
  reply.ok(hello);
}

void Server::ping(Session&, const wire::Empty&, const Reply<wire::SessionPingReply>& reply) {
  reply.ok({to_hex(books_->boot_id), events_->last_seq()});
}

void Server::bye(Session& session, const wire::Empty&, const Reply<wire::SessionByeReply>& reply) {
  const SessionId id = session.id;
  const bool plain = session.token.empty();
  const LeaseBook::Ended ended = end_leases(session);
  reply.ok({ended.leases});
  leases_ended(ended.blocks);
  if (plain) {
    session_ended(id);
  } else {
    fd_socket_->close_session(id);
  }
}

void Server::grant_lease(const Session& session, std::uint64_t number, const std::string& model,
                         const std::vector<std::string>& blocks) {
  books_->leases.grant(session.id, number, {model, blocks, session.peer, books_->clock.now()});
  wire::EventData data = event_of(session.peer);
  data.model = model;
  data.block = blocks.front();
  data.count = 1;
  events_->publish("lease.granted", data);
}

LeaseBook::Ended Server::end_leases(const Session& session) {
  LeaseBook::Ended ended = books_->leases.end_session(session.id);
  if (ended.leases > 0) {
    wire::EventData data = event_of(session.peer);
    data.count = ended.leases;
    events_->publish("lease.released", data);
  }
  return ended;
}

void Server::restate(Session& session, const wire::Restate& data, const Reply<wire::RestateReply>& reply) {
  wire::RestateReply outcome;
  if (std::ranges::any_of(data.leases,
                          [](const wire::HeldLease& held) { return held.lease > LeaseNumbers::kHighest; })) {
    return reply.error({ErrorCode::kInvalidArgument, "a lease's number is at most 2^62"});
  }
  for (const wire::HeldLease& held : data.leases) {
    const bool all_here = !held.blocks.empty() && std::ranges::all_of(held.blocks, [&](const std::string& block) {
      const Resident* const resident = books_->store.by_block(block);
      return resident != nullptr && !resident->removing && books_->may_attach(session.peer.uid, *resident);
    });
    session.lease_numbers.use(held.lease);
    if (!all_here) {
      outcome.lost.push_back(held.lease);
      continue;
    }
    grant_lease(session, held.lease, held.model, held.blocks);
    for (const std::string& block : held.blocks) books_->store.by_block(block)->was_leased = true;
    outcome.restated.push_back(held.lease);
  }
  reply.ok(outcome);
}

void Server::when_settled(std::function<void()> answer) {
  const TimePoint now = books_->clock.now();
  if (now >= settled_at_) return answer();
  loop_->after(settled_at_ - now, std::move(answer));
}

void Server::status(Session&, const wire::Empty&, const Reply<wire::StatusReply>& reply) {
  when_settled([this, reply] { reply.ok(status_now()); });
}

void Server::snapshot(Session& session, const wire::Empty&, const Reply<wire::EventsSnapshotReply>& reply) {
  when_settled([this, reply, uid = session.peer.uid] {
    events_->take_subscriptions();
    wire::ModelListReply list = list_models(uid);
    reply.ok({to_hex(books_->boot_id), events_->last_seq(), std::move(list.models), std::move(list.draining),
              status_now().tiers});
  });
}

wire::StatusReply Server::status_now() const {
  const OsFeatures& features = books_->os.features();
  const Budget::Use use = books_->use();
  const Budget::Loading loading = books_->budget.loading();
  wire::StatusReply status;
  status.boot_id = to_hex(books_->boot_id);
  status.version = kVersion;
  status.instance = books_->config.instance;
  status.pid = static_cast<std::uint64_t>(::getpid());
  status.uptime_ms = static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::milliseconds>(books_->clock.now() - books_->started).count());
  status.ram_directory = books_->config.ram_directory;
  status.page_kind = to_string(features.collapse && books_->config.huge_pages ? PageKind::kHuge : PageKind::kSmall);
  status.sessions = books_->sessions.size();
  for (const auto& [name, member] : kFeatureNames) status.features.emplace(name, features.*member);
  wire::TierStatus ram;
  ram.limit = books_->budget.limit();
  ram.reserved = loading.reserved;
  ram.made = use.made + loading.made;
  ram.draining = use.draining;
  ram.pinned = use.pinned;
  ram.leased = use.leased;
  ram.foreign = use.foreign;
  ram.foreign_blocks = books_->foreign.blocks;
  ram.models = books_->store.totals().models;
  ram.leases = books_->leases.total();
  ram.hits = books_->hits;
  ram.misses = books_->misses;
  ram.loads = books_->loads;
  ram.evictions = books_->evictions;
  ram.scrubbed_bytes = books_->scrubbed_bytes;
  ram.scrub_errors = books_->scrub_errors;
  status.tiers.emplace("ram", ram);
  return status;
}

}  // namespace modelbroker
