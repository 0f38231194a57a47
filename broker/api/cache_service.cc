#include "broker/api/cache_service.h"

#include <unistd.h>

#include "broker/api/model_lookup.h"
#include "broker/api/model_views.h"
#include "modelbroker_version.h"
#include "shm/block_format.h"

namespace modelbroker {

void CacheService::status(Session&, const wire::Empty&, const Reply<wire::StatusReply>& reply) {
  settled_.when([this, reply] { reply.ok(status_now()); });
}

void CacheService::snapshot(Session& session, const wire::Empty&, const Reply<wire::EventsSnapshotReply>& reply) {
  settled_.when([this, reply, uid = session.peer.uid] {
    events_.take_subscriptions();
    wire::ModelListReply list = list_models(books_, loading_, uid);
    reply.ok({to_hex(books_.boot_id), events_.last_seq(), std::move(list.models), std::move(list.draining),
              status_now().tiers});
  });
}

void CacheService::scrub(Session& session, const wire::Scrub& data, const Reply<wire::ScrubReply>& reply) {
  if (!books_.rights.everything(session.peer.uid)) {
    return reply.error({ErrorCode::kPermissionDenied, "only the broker's user and root may scrub"});
  }
  Scrubber::Ask ask;
  ask.session = session.id;
  if (data.model.empty()) {
    for (const auto& [id, block] : books_.blocks.all()) ask.blocks.push_back(id);
  } else {
    const auto model = find_model(books_, session, data.model);
    if (!model) return reply.error(model.error());
    for (const RamBlock* const part : (*model)->parts) ask.blocks.push_back(part->id());
  }
  ask.wanted = [reply] { return !reply.answered(); };
  ask.done = [reply](const Result<wire::ScrubReply>& found) { found ? reply.ok(*found) : reply.error(found.error()); };
  scrubber_.check(std::move(ask));
}

wire::StatusReply CacheService::status_now() const {
  const OsFeatures& features = books_.os.features();
  const Budget::Use use = books_.use();
  const Budget::Loading loading = books_.budget.loading();
  wire::StatusReply status;
  status.boot_id = to_hex(books_.boot_id);
  status.version = kVersion;
  status.instance = books_.config.instance;
  status.pid = static_cast<std::uint64_t>(::getpid());
  status.uptime_ms = static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::milliseconds>(books_.clock.now() - books_.started).count());
  status.ram_directory = books_.config.ram_directory;
  status.page_kind = to_string(features.collapse && books_.config.huge_pages ? PageKind::kHuge : PageKind::kSmall);
  status.sessions = books_.sessions.size();
  for (const auto& [name, member] : kFeatureNames) status.features.emplace(name, features.*member);
  wire::TierStatus ram;
  ram.limit = books_.budget.limit();
  ram.reserved = loading.reserved;
  ram.made = use.made + loading.made;
  ram.draining = use.draining;
  ram.pinned = use.pinned;
  ram.leased = use.leased;
  ram.foreign = use.foreign;
  ram.foreign_blocks = books_.foreign.blocks;
  ram.models = books_.models.all().size();
  ram.leases = books_.leases.total();
  ram.hits = books_.hits;
  ram.misses = books_.misses;
  ram.loads = books_.loads;
  ram.evictions = books_.evictions;
  ram.scrubbed_bytes = books_.scrubbed_bytes;
  ram.scrub_errors = books_.scrub_errors;
  status.tiers.emplace("ram", ram);
  return status;
}

}  // namespace modelbroker
