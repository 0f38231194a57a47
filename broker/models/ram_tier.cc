#include "broker/models/ram_tier.h"

#include <algorithm>

#include "broker/base/log.h"
#include "broker/ram/room.h"

namespace modelbroker {

std::optional<TimePoint> expires_at(const Books& books, const ModelEntry& model) {
  if (model.keep_alive < Duration(0) || !books.evictable(model)) return std::nullopt;
  const Duration least = model.was_leased ? Duration(0) : books.config.grace;
  return model.last_used + std::max(model.keep_alive, least);
}

BlockTier::Place RamTier::place() const {
  const FileSystemRoom room = file_system_room(books_.os, books_.config.ram_directory);
  return {room.free, room.has_inodes};
}

Error RamTier::place_is_full(const std::string& what, std::uint64_t bytes) const {
  const std::string& directory = books_.config.ram_directory;
  return no_room(what, bytes, directory, file_system_room(books_.os, directory));
}

std::vector<EvictionCandidate> RamTier::candidates() const {
  std::vector<EvictionCandidate> candidates;
  for (const auto& [id, model] : books_.models.all()) {
    if (!books_.evictable(model)) continue;
    EvictionCandidate candidate{
        .block = id, .value = model.value, .last_used = model.last_used, .expires = expires_at(books_, model)};
    for (const RamBlock* const block : model.parts) {
      if (block->models == 1) candidate.bytes += block->bytes();
      if (block->models > 1) candidate.shared.push_back({block->id(), block->bytes(), block->models});
    }
    candidates.push_back(std::move(candidate));
  }
  for (const auto& [id, block] : books_.blocks.all()) {
    const bool is_free = block.is_spare && block.promised == 0 && !block.removing && books_.leases.count(id) == 0;
    if (is_free) candidates.push_back({.block = id, .bytes = block.bytes(), .value = kWorthless});
  }
  return candidates;
}

bool RamTier::nobody_has(const std::string& id) {
  const RamBlock* const block = books_.blocks.find(id);
  if (block != nullptr && block->is_spare) return reaper_.nobody_has(*block);
  const ModelEntry* const model = books_.models.find_id(id);
  return model != nullptr && withdrawal_.nobody_has(*model);
}

bool RamTier::evict(const std::string& id, const std::string& why) {
  RamBlock* const block = books_.blocks.find(id);
  if (block != nullptr && block->is_spare) {
    log_info("freeing block " + id + " of a model that is not complete: " + why);
    reaper_.drain(*block);
    return block->draining();
  }
  ModelEntry* const model = books_.models.find_id(id);
  return model != nullptr && withdrawal_.evict(*model, why);
}

}  // namespace modelbroker
