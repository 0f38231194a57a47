#include "broker/models/ram_tier.h"

#include <algorithm>
#include <set>

#include "broker/base/log.h"
#include "broker/ram/room.h"

namespace modelbroker {

bool RamTier::evictable(const ModelEntry& model) const {
  return !model.pinned && std::ranges::none_of(model.parts, [&](const RamBlock* part) {
    return part->removing || part->promised > 0 || leases_.count(part->id()) > 0;
  });
}

std::optional<TimePoint> RamTier::expires_at(const ModelEntry& model) const {
  if (model.keep_alive < Duration(0) || !evictable(model)) return std::nullopt;
  const Duration least = model.was_leased ? Duration(0) : env_.config.grace;
  return model.last_used + std::max(model.keep_alive, least);
}

// A block counts once whatever its models: as pinned if one of them is, as evictable if all of them are.
Budget::Use RamTier::use() const {
  const RamBlocks::Totals totals = ram_.blocks.totals();
  Budget::Use use{
      .made = totals.made, .draining = totals.draining, .removing = totals.removing, .foreign = ram_.foreign.bytes};
  std::set<const RamBlock*> pinned, kept;
  for (const auto& [id, model] : models_.all()) {
    if (model.pinned) pinned.insert(model.parts.begin(), model.parts.end());
    if (!evictable(model)) kept.insert(model.parts.begin(), model.parts.end());
  }
  for (const RamBlock* const block : pinned) use.pinned += block->bytes();
  for (const auto& [id, block] : ram_.blocks.all()) {
    if (leases_.count(id) > 0) use.leased += block.bytes();
    const bool is_evictable = block.models > 0 ? !kept.contains(&block) : is_free(block);
    if (is_evictable) use.evictable += block.bytes();
  }
  return use;
}

// Of a model that is not complete, and nobody's.
bool RamTier::is_free(const RamBlock& block) const {
  return block.is_spare && block.promised == 0 && !block.removing && leases_.count(block.id()) == 0;
}

BlockTier::Place RamTier::place() const {
  const FileSystemRoom room = file_system_room(env_.os, env_.config.ram_directory);
  return {room.free, room.has_inodes};
}

Error RamTier::place_is_full(const std::string& what, std::uint64_t bytes) const {
  const std::string& directory = env_.config.ram_directory;
  return no_room(what, bytes, directory, file_system_room(env_.os, directory));
}

std::vector<EvictionCandidate> RamTier::candidates() const {
  std::vector<EvictionCandidate> candidates;
  for (const auto& [id, model] : models_.all()) {
    if (!evictable(model)) continue;
    EvictionCandidate candidate{
        .block = id, .value = model.value, .last_used = model.last_used, .expires = expires_at(model)};
    for (const RamBlock* const block : model.parts) {
      if (block->models == 1) candidate.bytes += block->bytes();
      if (block->models > 1) candidate.shared.push_back({block->id(), block->bytes(), block->models});
    }
    candidates.push_back(std::move(candidate));
  }
  for (const auto& [id, block] : ram_.blocks.all()) {
    if (is_free(block)) candidates.push_back({.block = id, .bytes = block.bytes(), .value = kWorthless});
  }
  return candidates;
}

bool RamTier::nobody_has(const std::string& id) {
  const RamBlock* const block = ram_.blocks.find(id);
  if (block != nullptr && block->is_spare) return reaper_.nobody_has(*block);
  const ModelEntry* const model = models_.find_id(id);
  return model != nullptr && withdrawal_.nobody_has(*model);
}

bool RamTier::evict(const std::string& id, const std::string& why) {
  RamBlock* const block = ram_.blocks.find(id);
  if (block != nullptr && block->is_spare) {
    log_info("freeing block " + id + " of a model that is not complete: " + why);
    reaper_.drain(*block);
    return block->draining();
  }
  ModelEntry* const model = models_.find_id(id);
  return model != nullptr && withdrawal_.evict(*model, why);
}

}  // namespace modelbroker
