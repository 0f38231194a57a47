#include "broker/models/store.h"

#include <algorithm>
#include <tuple>
#include <utility>

namespace modelbroker {
namespace {

constexpr std::size_t kMaxCopies = 16;  // more are hashed again at each look

// What still has its name goes before what has none or drains, then the higher generation.
auto rank(const Resident& resident) {
  return std::tuple(!resident.draining(), !resident.names.empty(), resident.block->name().generation);
}

}  // namespace

bool Resident::holds(const FileIdentity& file) const {
  return source == file || std::ranges::any_of(copies, [&](const auto& copy) { return copy.second == file; });
}

void Resident::confirm(const std::string& file_path, const FileIdentity& file) {
  if (file_path == path || source.same_but_ctime(file)) {
    source = file;
    return;
  }
  if (!copies.contains(file_path) && copies.size() >= kMaxCopies) copies.erase(copies.begin());
  copies[file_path] = file;
}

Resident& RamStore::add(Resident resident) {
  const std::string id = resident.block->id();
  for (const std::string& name : resident.names) names_[name] = {id, {resident.loader, resident.path}};
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
    if (best == nullptr || rank(resident) > rank(*best)) best = &resident;
  }
  return best;
}

Resident* RamStore::by_path(std::string_view path) {
  if (path.empty()) return nullptr;
  return newest([&](const Resident& r) {
    return std::ranges::any_of(r.names, [&](const std::string& name) {
      const GivenName& known = given(name);
      return known.path == path && !known.is_label;
    });
  });
}

Resident* RamStore::find(std::string_view name_or_path) {
  return name_or_path.starts_with('/') ? by_path(name_or_path) : by_name(name_or_path);
}

const GivenName& RamStore::given(std::string_view name) const {
  static const GivenName nobodys;
  const auto found = names_.find(name);
  return found == names_.end() ? nobodys : found->second.given;
}

Resident* RamStore::by_source(const FileIdentity& source) {
  return newest([&](const Resident& r) { return !r.damaged && r.holds(source); });
}

std::vector<Resident*> RamStore::alike(const FileIdentity& source) {
  std::vector<Resident*> found;
  for (auto& [id, resident] : residents_) {
    if (!resident.removing && !resident.damaged && resident.source.alike(source)) found.push_back(&resident);
  }
  std::ranges::sort(found, [](const Resident* one, const Resident* other) { return rank(*one) > rank(*other); });
  return found;
}

Result<void> RamStore::add_name(Resident& resident, const std::string& name, GivenName given) {
  const auto [entry, is_new] = names_.emplace(name, Named{resident.block->id(), std::move(given)});
  if (is_new) {
    resident.names.push_back(name);
    return {};
  }
  if (entry->second.block == resident.block->id()) return {};
  return fail(ErrorCode::kAlreadyExists, "the name '" + name + "' belongs to '" + entry->second.given.path +
                                             "': use --name to choose another, or unload it first");
}

void RamStore::asked_again(const Resident& resident, std::string_view path, std::uint64_t asked) {
  for (const std::string& name : resident.names) {
    GivenName& known = names_.at(name).given;
    if (known.path == path) known.asked = std::max(known.asked, asked);
  }
}

void RamStore::remove_name(Resident& resident, const std::string& name) {
  std::erase(resident.names, name);
  names_.erase(name);
  const auto is_there = [&](const std::string& other) { return given(other).path == resident.path; };
  if (resident.names.empty() || std::ranges::any_of(resident.names, is_there)) return;
  // No name leads to that file any more: it is the next name's now.
  resident.path = given(resident.name()).path;
  if (const auto copy = resident.copies.find(resident.path); copy != resident.copies.end()) {
    resident.source = copy->second;
    resident.copies.erase(copy);
  }
}

void RamStore::move_names(Resident& from, Resident& to, std::string_view path) {
  const std::vector<std::string> names = std::exchange(from.names, {});
  for (const std::string& name : names) {
    Named& named = names_[name];
    const bool goes = named.given.path == path;
    if (goes) named.block = to.block->id();
    (goes ? to : from).names.push_back(name);
  }
  to.pinned = to.pinned || from.pinned;
  from.pinned = from.pinned && !from.names.empty();
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
