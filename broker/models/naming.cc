#include "broker/models/naming.h"

#include <algorithm>

#include "broker/base/log.h"
#include "broker/models/default_name.h"
#include "shm/text.h"

namespace modelbroker {

std::string Claim::wanted_name() const { return name.empty() ? default_name(path) : name; }

namespace {

Error name_taken(const std::string& name, const std::string& owner) {
  return {ErrorCode::kAlreadyExists, "the name '" + printable(name) + "' belongs to " + owner +
                                         ": use --name to choose another, or unload it first"};
}

std::string file_at(const std::string& path, bool shown) {
  return shown ? "'" + printable(path) + "'" : "another user's file";
}

}  // namespace

Error Naming::taken(const std::string& name, const Resident* owner, uid_t asker) const {
  if (owner == nullptr) return name_taken(name, "another user's model that was evicted");
  return name_taken(name, file_at(books_.store.given(name).path, books_.may_attach(asker, *owner)));
}

bool Naming::is_managed(const Claim& claim, const EvictedNames::Model& evicted) const {
  return books_.rights.manage(claim.manager(), evicted.given.loader);
}

// The evicted model of somebody else, and not of this file: its name is not given away while it has no block.
bool Naming::is_kept_for_another(const Claim& claim, const std::string& name, const FileIdentity& source) const {
  const EvictedNames::Model* const evicted = books_.evicted.find(name);
  if (evicted == nullptr || is_managed(claim, *evicted)) return false;
  if (evicted->source) return !evicted->source->same_but_ctime(source);
  return evicted->given.path != claim.path || claim.is_label;
}

Result<void> Naming::check(const Claim& claim, const FileIdentity& source, const std::vector<const Claim*>& coming,
                           bool is_compared) const {
  if (claim.any_name) return {};
  const auto may_be_same = [&](const Resident& resident) {
    return resident.holds(source) || (!is_compared && resident.source.alike(source));
  };
  const std::string name = claim.wanted_name();
  const uid_t uid = claim.peer.uid;
  const Resident* const owner = books_.store.by_name(name);
  const bool same_path =
      owner != nullptr && books_.store.given(name).path == claim.path && books_.manages(uid, *owner, claim.path);
  const bool is_another = owner != nullptr && !same_path && !may_be_same(*owner);
  const bool is_kept = owner == nullptr && is_kept_for_another(claim, name, source);
  if (is_another || is_kept) {
    // A file that is resident under other names needs no name of its own.
    if (claim.name.empty() && books_.store.by_source(source) != nullptr) return {};
    if (claim.name.empty() && !is_compared && !books_.store.alike(source).empty()) return {};
    return tl::unexpected(taken(name, owner, uid));
  }
  for (const Claim* const other : coming) {
    const bool managed = books_.rights.manage(uid, other->peer.uid);
    const bool same = other->path == claim.path && managed;
    if (other->wanted_name() == name && !same) return tl::unexpected(name_taken(name, file_at(other->path, managed)));
  }
  return {};
}

Result<void> Naming::allow(const Claim& claim, Resident& resident) {
  if (!books_.may_attach(claim.peer.uid, resident)) {
    return tl::unexpected(Rights::not_attachable(printable(claim.wanted_name())));
  }
  settle_privacy(claim, resident);
  return {};
}

// The file's owner may have opened it to the group since, or closed it.
void Naming::settle_privacy(const Claim& claim, Resident& resident) {
  const auto group = books_.rights.group();
  if (!group || claim.is_private == resident.is_private) return;
  const uid_t uid = claim.peer.uid;
  if (claim.is_private && !books_.rights.everything(uid) && uid != resident.source_uid && uid != resident.loader) {
    return;  // found by another way to the file, through a folder of this user's own
  }
  Block& block = *resident.block;
  const auto done = claim.is_private ? block.take_from_group(books_.os) : block.give_to_group(books_.os, *group);
  if (!done) return log_warning(done.error().message);
  resident.is_private = claim.is_private;
}

// The block that this path led to before; with a label, that of the wanted name, if it was given with the same label.
Resident* Naming::before(const Claim& claim, const Resident& resident) {
  const std::string name = claim.wanted_name();
  const GivenName& given = books_.store.given(name);
  Resident* found = nullptr;
  if (!claim.is_label) {
    found = books_.store.by_path(claim.path);
  } else if (given.is_label && given.path == claim.path) {
    found = books_.store.by_name(name);
  }
  const bool is_ours = found != nullptr && found != &resident && books_.manages(claim.peer.uid, *found, claim.path);
  return is_ours ? found : nullptr;
}

// Who came later found another file there, and has got it already.
bool Naming::is_outdated(const Claim& claim, const Resident& before) const {
  return std::ranges::any_of(before.names, [&](const std::string& name) {
    const GivenName& given = books_.store.given(name);
    return given.path == claim.path && given.asked > claim.asked;
  });
}

// The first of its names that was given to the file at this path.
std::string Naming::name_at(const std::string& path, const Resident& resident) const {
  const auto found =
      std::ranges::find(resident.names, path, [&](const std::string& name) { return books_.store.given(name).path; });
  return found == resident.names.end() ? "" : *found;
}

// Empty: what it is called already, or will be called when it takes over, is enough.
Result<std::string> Naming::new_name(const Claim& claim, const Resident& resident, const Resident* before) {
  const bool has_names = !resident.names.empty() || (before != nullptr && !before->names.empty());
  // A copy of the file is called by its own name too, if that is free.
  const bool is_new_copy = resident.copies.contains(claim.path) && name_at(claim.path, resident).empty();
  if (claim.name.empty() && has_names && !is_new_copy) return {};
  std::string name = claim.wanted_name();
  const auto is_free = [&] {
    const Resident* const owner = books_.store.by_name(name);
    if (owner == nullptr) return !is_kept_for_another(claim, name, resident.source);
    return owner == &resident || (owner == before && books_.store.given(name).path == claim.path);
  };
  if (claim.name.empty() && has_names && !is_free()) return {};
  if (claim.any_name && !is_free()) {
    const std::string base = name, digest = "@" + resident.block->name().digest16;
    name = with_suffix(base, digest);
    // Other files of this name and these bytes may have that one too.
    for (unsigned number = 2; !is_free(); ++number) name = with_suffix(base, digest + "-" + std::to_string(number));
  }
  if (!is_free()) return tl::unexpected(taken(name, books_.store.by_name(name), claim.peer.uid));
  return name;
}

// Names follow the file: what this path was called before, its new generation is called now, and is kept as that was.
void Naming::take_over(const Claim& claim, Resident& before, Resident& resident, Settled& settled) {
  if (resident.names.empty()) {
    resident.type = before.type;
    resident.keep_alive = before.keep_alive;
  }
  const auto had = static_cast<std::ptrdiff_t>(resident.names.size());
  books_.store.move_names(before, resident, claim.path);
  settled.aliases.assign(resident.names.begin() + had, resident.names.end());
  if (before.names.empty()) {
    settled.superseded = before.block->id();
    return;
  }
  settled.shrunk = before.block->id();
  before.path = books_.store.given(before.name()).path;
}

// Loaded by hand or attached: what was evicted, or lost with its block, is kept as it was.
void Naming::keep_as_evicted(const Claim& claim, const std::string& name, Resident& resident) const {
  const EvictedNames::Model* const evicted = books_.evicted.find(name);
  if (evicted == nullptr) return;
  if (is_managed(claim, *evicted) && evicted->given.path != claim.path) return;  // its owner means another file
  Books::keep_as(resident, *evicted);
}

// A name stays whose it was: also when somebody else loads that file again.
GivenName Naming::given_by(const Claim& claim, const std::string& name) const {
  GivenName given{claim.manager(), claim.path, claim.is_label, claim.asked};
  const EvictedNames::Model* const evicted = books_.evicted.find(name);
  if (evicted == nullptr) return given;
  if (!is_managed(claim, *evicted)) {
    given = evicted->given;
    given.asked = claim.asked;
  } else if (evicted->given.path == claim.path) {
    given.loader = evicted->given.loader;
  }
  return given;
}

Result<Naming::Settled> Naming::settle(const Claim& claim, Resident& resident, std::string& outcome) {
  const uid_t uid = claim.peer.uid;
  Resident* const older = before(claim, resident);
  if (older != nullptr && is_outdated(claim, *older)) {
    return fail(ErrorCode::kStaleGeneration,
                "'" + printable(claim.path) + "' is another file since, which is loaded already: load it again");
  }
  MODELBROKER_ASSIGN(const std::string name, new_name(claim, resident, older));
  const bool had_names = !resident.names.empty();
  Settled settled;
  if (older != nullptr) take_over(claim, *older, resident, settled);
  if (!had_names || older != nullptr) resident.path = claim.path;
  if (!had_names && older == nullptr) keep_as_evicted(claim, name, resident);
  if (!claim.type.empty() && (!had_names || books_.manages_any(uid, resident))) resident.type = claim.type;
  settled.name = name;
  if (name.empty() && resident.copies.contains(claim.path)) settled.name = name_at(claim.path, resident);
  if (settled.name.empty()) settled.name = resident.name();
  const bool is_new = !name.empty() && std::ranges::find(resident.names, name) == resident.names.end();
  if (is_new) {
    MODELBROKER_TRY(books_.store.add_name(resident, name, given_by(claim, name)));
  } else if (!claim.name.empty() && books_.rights.manage(uid, books_.store.loader_of(name))) {
    // A label takes nothing from a path at which the broker has seen the file.
    const bool is_known = books_.store.given(name).path == claim.path && !books_.store.given(name).is_label;
    books_.store.set_path(name, claim.path, claim.is_label && !is_known);
  }
  for (const std::string& known : resident.names) {
    books_.evicted.forget(known);
    const GivenName& given = books_.store.given(known);
    const bool is_more_than_label = given.path == claim.path && given.is_label && !claim.is_label;
    if (is_more_than_label && books_.rights.manage(uid, given.loader)) {
      books_.store.set_path(known, claim.path, /*is_label=*/false);
    }
  }
  books_.store.asked_again(resident, claim.path, claim.asked);
  if (is_new && outcome == "resident") {
    settled.aliases.push_back(name);
    if (had_names) outcome = "alias";
  } else if (outcome != "resident") {
    std::erase(settled.aliases, settled.name);  // that of the whole
  }
  return settled;
}

}  // namespace modelbroker
