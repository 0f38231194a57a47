#include "broker/models/ram_tier.h"

#include <algorithm>

#include "broker/ram/room.h"

namespace modelbroker {

std::optional<TimePoint> expires_at(const Books& books, const Resident& resident) {
  if (resident.keep_alive < Duration(0) || !books.evictable(resident)) return std::nullopt;
  const Duration least = resident.was_leased ? Duration(0) : books.config.grace;
  return resident.last_used + std::max(resident.keep_alive, least);
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
  for (const auto& [id, resident] : books_.store.all()) {
    if (!books_.evictable(resident)) continue;
    candidates.push_back({id, resident.bytes(), resident.value, resident.last_used, expires_at(books_, resident)});
  }
  return candidates;
}

bool RamTier::nobody_has(const std::string& block) {
  const Resident* const resident = books_.store.by_block(block);
  return resident != nullptr && reaper_.nobody_has(*resident);
}

bool RamTier::evict(const std::string& block, const std::string& why) {
  Resident* const resident = books_.store.by_block(block);
  return resident != nullptr && reaper_.evict(*resident, why);
}

}  // namespace modelbroker
