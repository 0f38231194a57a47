#include "broker/ram/store.h"

#include <algorithm>

namespace modelbroker {

Resident& RamStore::add(Resident resident) {
  const std::string id = resident.block->id();
  for (const std::string& name : resident.names) names_[name] = {id, resident.loader};
  return residents_.insert_or_assign(id, std::move(resident)).first->second;
}

void RamStore::erase(const std::string& block) {
  Resident* const resident = by_block(block);
  if (resident == nullptr) return;
  for (const std::string& name : resident->names) names_.erase(name);
  residents_.erase(block);
}

Resident* RamStore::by_block(const std::string& block) {
  const auto found = residents_.find(block);
  return found == residents_.end() ? nullptr : &found->second;
}

Resident* RamStore::by_name(std::string_view name) {
  const auto found = names_.find(name);
  return found == names_.end() ? nullptr : by_block(found->second.block);
}

template <class Predicate>
Resident* RamStore::newest(Predicate predicate) {
  Resident* best = nullptr;
  for (auto& [id, resident] : residents_) {
    if (resident.removing || !predicate(resident)) continue;
    // What still has its name goes before what drains, then the higher generation.
    const auto rank = [](const Resident& r) { return std::pair(!r.draining(), r.block->name().generation); };
    if (best == nullptr || rank(resident) > rank(*best)) best = &resident;
  }
  return best;
}

Resident* RamStore::by_path(std::string_view path, const Believes& believes) {
  if (path.empty()) return nullptr;
  return newest(
      [&](const Resident& r) { return !r.draining() && r.path == path && (!believes || believes(r.path_uid)); });
}

Resident* RamStore::find(std::string_view name_or_path, const Believes& believes) {
  return name_or_path.starts_with('/') ? by_path(name_or_path, believes) : by_name(name_or_path);
}

uid_t RamStore::loader_of(std::string_view name) const {
  const auto found = names_.find(name);
  return found == names_.end() ? 0 : found->second.loader;
}

Resident* RamStore::by_source(const FileIdentity& source) {
  return newest([&](const Resident& r) { return !r.damaged && r.source == source; });
}

Resident* RamStore::by_source_but_ctime(const FileIdentity& source) {
  return newest([&](const Resident& r) { return !r.damaged && r.source.same_but_ctime(source); });
}

Result<void> RamStore::add_name(Resident& resident, const std::string& name, uid_t loader) {
  const auto [entry, is_new] = names_.emplace(name, Named{resident.block->id(), loader});
  if (is_new) {
    resident.names.push_back(name);
    return {};
  }
  if (entry->second.block == resident.block->id()) return {};
  const Resident& owner = residents_.at(entry->second.block);
  return fail(ErrorCode::kAlreadyExists, "the name '" + name + "' belongs to '" + owner.path +
                                             "': use --name to choose another, or unload it first");
}

void RamStore::remove_name(Resident& resident, const std::string& name) {
  std::erase(resident.names, name);
  names_.erase(name);
}

void RamStore::move_names(Resident& from, Resident& to) {
  for (std::string& name : from.names) {
    names_[name].block = to.block->id();
    to.names.push_back(std::move(name));
  }
  from.names.clear();
  to.pinned = to.pinned || from.pinned;
  from.pinned = false;
}

Result<void> RamStore::drain(Resident& resident) {
  if (!resident.draining()) MODELBROKER_TRY(resident.block->drain(os_));
  if (resident.bytes() == 0) resident.damaged = true;  // its file was missing
  for (const std::string& name : resident.names) names_.erase(name);
  resident.names.clear();
  resident.pinned = false;
  return {};
}

Result<void> RamStore::revive(Resident& resident) { return resident.block->revive(os_); }

RamStore::Totals RamStore::totals() const {
  Totals totals;
  for (const auto& [id, resident] : residents_) {
    const std::uint64_t bytes = resident.bytes();  // read once: a job may free them in between
    if (resident.draining()) {
      totals.draining += bytes;
      if (resident.removing) totals.removing += bytes;
      continue;
    }
    totals.made += bytes;
    totals.models += 1;
    if (resident.pinned) totals.pinned += bytes;
  }
  return totals;
}

}  // namespace modelbroker
