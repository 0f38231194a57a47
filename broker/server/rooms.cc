#include "broker/server/rooms.h"

#include <utility>

namespace modelbroker {

Rooms::Rooms(Facts& its_facts, Loop& loop, EventSink& events, LoadNotes& notes, State state)
    : facts(its_facts),
      jobs(loop, kJobThreads),
      keeper(facts.env.os, facts.ram.blocks, facts.models, loop, std::move(state.path), std::move(state.db),
             std::move(state.hold_place)),
      reaper(facts.env, facts.ram, facts.workers.leases, loop, jobs, events),
      withdrawal(facts.env, facts.models, reaper, events),
      tier(facts.env, facts.ram, facts.models, facts.workers.leases, reaper, withdrawal),
      admission(tier, loop),
      expiry(tier, loop),
      scrubber(facts.env, facts.ram, loop, events,
               {.name =
                    [this](const RamBlock& block) {
                      const auto models = facts.models.with_block(block);
                      return models.empty() ? block.block->manifest().name : models.front()->name();
                    },
                .damaged = [this](RamBlock& block,
                                  const wire::EventData& what_is_wrong) { withdrawal.damaged(block, what_is_wrong); }}),
      block_loads(facts.env, facts.ram, facts.workers.rights, loop, reaper, admission, scrubber, events, notes),
      loading(facts.env, facts.workers.rights, facts.ram, facts.models, tier, loop, block_loads, reaper, admission,
              expiry, events, notes),
      settled(loop),
      views(facts.env, facts.workers, facts.ram, facts.models, tier, loading),
      leases(facts.env, facts.workers, facts.ram, facts.models, tier, events, loading, scrubber, reaper, admission,
             expiry),
      model_service(facts.env, facts.workers, facts.ram, facts.models, tier, views, loop, settled, loading, keeper,
                    reaper, withdrawal),
      cache(facts.env, facts.workers, facts.ram, facts.models, tier, views, events, settled, scrubber) {
  reaper.on_changed([this](const std::string& block) { keeper.save({}, {block}); });
  facts.models.observe({&keeper, &events, [this](const ModelEntry& model) {
                          expiry.changed(tier.expires_at(model));
                          admission.look_again();
                        }});
}

Rooms::~Rooms() { facts.models.observe({}); }

}  // namespace modelbroker
