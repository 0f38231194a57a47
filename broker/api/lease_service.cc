#include "broker/api/lease_service.h"

#include <algorithm>
#include <utility>

#include "broker/api/model_lookup.h"
#include "broker/models/model_events.h"
#include "broker/models/model_rights.h"
#include "shm/text.h"

namespace modelbroker {
namespace {

Result<void> use_number(Session& session, std::uint64_t lease) {
  if (lease > LeaseNumbers::kHighest) return fail(ErrorCode::kInvalidArgument, "a lease's number is at most 2^62");
  if (lease == 0 || session.lease_numbers.use(lease)) return {};
  return fail(ErrorCode::kAlreadyExists,
              "the lease number " + std::to_string(lease) +
                  " was used in this session before, by an attach or a detach: count upwards");
}

}  // namespace

void LeaseService::attach(Session& session, const wire::Attach& data, const Reply<wire::AttachReply>& reply) {
  if (const auto used = use_number(session, data.lease); !used) return reply.error(used.error());
  if (data.device != "cpu") {
    return reply.error(
        {ErrorCode::kUnimplemented, "device '" + printable(data.device, 64) + "': this version serves 'cpu' only"});
  }
  if (!data.component.empty()) {
    return reply.error(
        {ErrorCode::kUnimplemented, "component '" + printable(data.component, 64) +
                                        "': this version attaches whole models; use state_dict(prefix=...)"});
  }
  if (const ModelEntry* const there = models_.find(data.model)) {
    const std::vector<RamBlock*> parts = there->parts;
    for (RamBlock* const part : parts) (void)scrubber_.withdraw_missing(*part);
  }
  const RememberedNames::Model* const evicted = data.load ? models_.remembered().find(data.model) : nullptr;
  if (evicted != nullptr) {
    if (evicted->given.is_label) {
      return reply.error({ErrorCode::kPermissionDenied,
                          "'" + printable(data.model) + "' was evicted or damaged: load it again from its file"});
    }
    auto ask = ask_for_files(env_.clock.now(), session, evicted->given.path, "", {});
    if (!ask) return reply.error(ask.error());
    ask->name = data.model;
    ask->type = evicted->type;
    ask->keep_alive = evicted->keep_alive;
    ask->pin = evicted->pinned;
    ask->name_loader = evicted->given.loader;
    ask->until = reply.deadline();
    ask->lease = data.lease;
    return attach_by_load(std::move(*ask), reply, data.model);
  }
  const bool has_files = !data.file.empty() || !data.files.empty();
  if (!is_path(data.model) || (!has_files && !data.load)) {
    const auto model = find_model(workers_.rights, models_, session, data.model);
    if (!model) return reply.error(model.error());
    if (!may_attach(workers_.rights, session.peer.uid, **model)) {
      return reply.error(Rights::not_attachable(printable(data.model)));
    }
    ++env_.counters.hits;
    const std::string& name = is_path(data.model) ? (*model)->name() : data.model;
    return reply.ok(grant(session, data.lease, **model, name, Outcome::kResident));
  }
  auto ask = ask_for_files(env_.clock.now(), session, data.model, data.file, data.files);
  if (!ask) return reply.error(ask.error());
  ask->any_name = true;  // who attaches by path wants the weights, whatever they are called
  ask->look_only = !data.load;
  ask->until = reply.deadline();
  ask->lease = data.lease;
  attach_by_load(std::move(*ask), reply, "");
}

// `evicted`: the name of a model that was here before and is loaded again.
void LeaseService::attach_by_load(Loading::Ask ask, const Reply<wire::AttachReply>& reply, const std::string& evicted) {
  const SessionId id = ask.session;
  const std::uint64_t lease = ask.lease;
  if (lease != 0) workers_.sessions.find(id)->attaching.insert(lease);
  // False: a detach came before the grant, or the session has ended.
  const auto waited = [this, id, lease] {
    Session* const asker = workers_.sessions.find(id);
    return asker != nullptr && (asker->attaching.erase(lease) > 0 || lease == 0);
  };
  const auto done = [this, reply, id, lease, evicted, waited](Result<Loading::Answer> outcome) {
    const bool is_wanted = waited();
    if (!outcome) {
      Error error = outcome.error();
      if (!evicted.empty() && error.code == ErrorCode::kPermissionDenied) {
        error.message = "'" + printable(evicted) + "' was evicted or damaged: load it again from its file";
      } else if (!evicted.empty()) {
        error.message =
            "'" + printable(evicted) + "' was evicted or damaged, and cannot be loaded again: " + error.message;
      }
      return reply.error(error);
    }
    if (reply.answered()) return;  // deadline passed: nobody would ever end that lease
    if (!is_wanted) return reply.error(Loading::lease_detached(lease));
    Session* const asker = workers_.sessions.find(id);
    ModelEntry* const model = models_.find_id(outcome->id);
    if (model == nullptr) {
      return reply.error({ErrorCode::kUnavailable, "the model was unloaded before this request could use it; retry"});
    }
    reply.ok(grant(*asker, lease, *model, outcome->model, outcome->outcome));
  };
  const Loading::AskId asked = loading_.start(std::move(ask), done);
  reply.on_late([this, asked, waited] {
    loading_.give_up(asked);
    (void)waited();
  });
}

wire::AttachReply LeaseService::grant(Session& session, std::uint64_t lease, ModelEntry& model, const std::string& name,
                                      Outcome outcome) {
  wire::AttachReply attached;
  attached.lease = lease != 0 ? lease : session.lease_numbers.use_next();
  attached.model = name;
  attached.outcome = to_string(outcome);
  std::vector<std::string> blocks;
  for (const RamBlock* const part : model.parts) {
    const Block& block = *part->block;
    const BlockLayout& layout = block.header().layout;
    wire::BlockGrant grant;
    grant.block = block.id();
    grant.path = block.path();
    grant.generation = block.name().generation;
    grant.size = layout.block_size;
    grant.payload_offset = layout.payload.offset;
    grant.payload_size = layout.payload.size;
    grant.manifest_offset = layout.manifest.offset;
    grant.manifest_size = layout.manifest.size;
    grant.page_kind = to_string(block.page_kind());
    blocks.push_back(grant.block);
    attached.blocks.push_back(std::move(grant));
  }
  book(session, attached.lease, name, blocks);
  model.was_leased = true;
  models_.used(model, env_.clock.now());
  return attached;
}

void LeaseService::detach(Session& session, const wire::Detach& data, const Reply<wire::DetachReply>& reply) {
  wire::EventData released = event_of(session.peer);
  if (const Lease* const lease = workers_.leases.find(session.id, data.lease)) released.model = lease->model;
  const std::vector<std::string> blocks = workers_.leases.end(session.id, data.lease);
  // Not granted yet: its attach is cancelled, or refused when it comes.
  if (session.attaching.erase(data.lease) > 0) loading_.detached(session.id, data.lease);
  if (data.lease <= LeaseNumbers::kHighest) session.lease_numbers.use(data.lease);
  reply.ok({!blocks.empty()});
  if (blocks.empty()) return;
  if (blocks.size() == 1) released.block = blocks.front();
  released.count = 1;
  events_.publish("lease.released", released);
  let_go(blocks);
}

void LeaseService::restate(Session& session, const wire::Restate& data, const Reply<wire::RestateReply>& reply) {
  wire::RestateReply outcome;
  if (std::ranges::any_of(data.leases,
                          [](const wire::HeldLease& held) { return held.lease > LeaseNumbers::kHighest; })) {
    return reply.error({ErrorCode::kInvalidArgument, "a lease's number is at most 2^62"});
  }
  for (const wire::HeldLease& held : data.leases) {
    const bool all_here = !held.blocks.empty() && std::ranges::all_of(held.blocks, [&](const std::string& block) {
      const RamBlock* const there = ram_.blocks.find(block);
      return there != nullptr && !there->removing && may_attach(workers_.rights, session.peer.uid, *there);
    });
    session.lease_numbers.use(held.lease);
    if (!all_here) {
      outcome.lost.push_back(held.lease);
      continue;
    }
    book(session, held.lease, held.model, held.blocks);
    for (const std::string& block : held.blocks) {
      for (ModelEntry* const model : models_.with_block(*ram_.blocks.find(block))) model->was_leased = true;
    }
    outcome.restated.push_back(held.lease);
  }
  reply.ok(outcome);
}

void LeaseService::book(const Session& session, std::uint64_t number, const std::string& model,
                        const std::vector<std::string>& blocks) {
  workers_.leases.grant(session.id, number, {model, blocks, session.peer, env_.clock.now()});
  wire::EventData data = event_of(session.peer);
  data.model = model;
  if (blocks.size() == 1) data.block = blocks.front();
  data.count = 1;
  events_.publish("lease.granted", data);
}

LeaseBook::Ended LeaseService::end_all(const Session& session) {
  LeaseBook::Ended ended = workers_.leases.end_session(session.id);
  if (ended.leases > 0) {
    wire::EventData data = event_of(session.peer);
    data.count = ended.leases;
    events_.publish("lease.released", data);
  }
  return ended;
}

void LeaseService::let_go(const std::vector<std::string>& blocks) {
  for (const std::string& id : blocks) {
    if (const RamBlock* const block = ram_.blocks.find(id)) {
      for (ModelEntry* const model : models_.with_block(*block)) {
        models_.used(*model, env_.clock.now());
        expiry_.changed(tier_.expires_at(*model));
      }
    }
    reaper_.check(id);
  }
  admission_.look_again();
}

}  // namespace modelbroker
