#include "broker/api/cache_service.h"

#include <unistd.h>

#include "broker/api/model_lookup.h"
#include "modelbroker_version.h"
#include "shm/block_format.h"

namespace modelbroker {

void CacheService::status(Session&, const wire::Empty&, const Reply<wire::StatusReply>& reply) {
  settled_.when([this, reply] { reply.ok(status_now()); });
}

void CacheService::snapshot(Session& session, const wire::Empty&, const Reply<wire::EventsSnapshotReply>& reply) {
  settled_.when([this, reply, uid = session.peer.uid] {
    events_.take_subscriptions();
    wire::ModelListReply list = views_.list(uid);
    reply.ok({to_hex(env_.boot_id), events_.last_seq(), std::move(list.models), std::move(list.draining),
              status_now().tiers});
  });
}

void CacheService::scrub(Session& session, const wire::Scrub& data, const Reply<wire::ScrubReply>& reply) {
  if (!workers_.rights.everything(session.peer.uid)) {
    return reply.error({ErrorCode::kPermissionDenied, "only the broker's user and root may scrub"});
  }
  Scrubber::Ask ask;
  ask.session = session.id;
  if (data.model.empty()) {
    for (const auto& [id, block] : ram_.blocks.all()) ask.blocks.push_back(id);
  } else {
    const auto model = find_model(workers_.rights, models_, session, data.model);
    if (!model) return reply.error(model.error());
    for (const RamBlock* const part : (*model)->parts) ask.blocks.push_back(part->id());
  }
  ask.wanted = [reply] { return !reply.answered(); };
  ask.done = [reply](const Result<wire::ScrubReply>& found) { found ? reply.ok(*found) : reply.error(found.error()); };
  scrubber_.check(std::move(ask));
}

wire::StatusReply CacheService::status_now() const {
  const OsFeatures& features = env_.os.features();
  const Budget::Use use = tier_.use();
  const Budget::Loading loading = ram_.budget.loading();
  wire::StatusReply status;
  status.boot_id = to_hex(env_.boot_id);
  status.version = kVersion;
  status.instance = env_.config.instance;
  status.pid = static_cast<std::uint64_t>(::getpid());
  status.uptime_ms = static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::milliseconds>(env_.clock.now() - env_.started).count());
  status.ram_directory = env_.config.ram_directory;
  status.page_kind = to_string(features.collapse && env_.config.huge_pages ? PageKind::kHuge : PageKind::kSmall);
  status.sessions = workers_.sessions.size();
  for (const auto& [name, member] : kFeatureNames) status.features.emplace(name, features.*member);
  wire::TierStatus ram;
  ram.limit = ram_.budget.limit();
  ram.reserved = loading.reserved;
  ram.made = use.made + loading.made;
  ram.draining = use.draining;
  ram.pinned = use.pinned;
  ram.leased = use.leased;
  ram.foreign = use.foreign;
  ram.foreign_blocks = ram_.foreign.blocks;
  ram.models = models_.all().size();
  ram.leases = workers_.leases.total();
  ram.hits = env_.counters.hits;
  ram.misses = env_.counters.misses;
  ram.loads = env_.counters.loads;
  ram.evictions = env_.counters.evictions;
  ram.scrubbed_bytes = env_.counters.scrubbed_bytes;
  ram.scrub_errors = env_.counters.scrub_errors;
  status.tiers.emplace("ram", ram);
  return status;
}

}  // namespace modelbroker
