#include "broker/models/ram_tier.h"

#include <algorithm>

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
    std::uint64_t bytes = 0;  // what goes with it: another model may share the rest
    for (const RamBlock* const block : model.its_alone()) bytes += block->bytes();
    candidates.push_back({id, bytes, model.value, model.last_used, expires_at(books_, model)});
  }
  return candidates;
}

bool RamTier::nobody_has(const std::string& id) {
  const ModelEntry* const model = books_.models.find_id(id);
  return model != nullptr && withdrawal_.nobody_has(*model);
}

bool RamTier::evict(const std::string& id, const std::string& why) {
  ModelEntry* const model = books_.models.find_id(id);
  return model != nullptr && withdrawal_.evict(*model, why);
}

}  // namespace modelbroker
