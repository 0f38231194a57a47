#include "broker/server/naming.h"

#include <algorithm>

#include "broker/server/log.h"
#include "wire/frame.h"

namespace modelbroker {

std::string stem_of(const std::string& path) {
  const std::string file = path.substr(path.rfind('/') + 1);
  const auto dot = file.rfind('.');
  return dot == std::string::npos || dot == 0 ? file : file.substr(0, dot);
}

std::string Claim::wanted_name() const { return name.empty() ? stem_of(path) : name; }

Result<void> Naming::check(const Claim& claim, const FileIdentity& source,
                           const std::vector<const Claim*>& coming) const {
  if (claim.any_name) return {};
  const std::string name = claim.wanted_name();
  const uid_t uid = claim.peer.uid;
  const auto taken = [&](const std::string& path, bool shown) {
    return fail(ErrorCode::kAlreadyExists, "the name '" + wire::printable(name) + "' belongs to " +
                                               (shown ? "'" + wire::printable(path) + "'" : "another user's file") +
                                               ": use --name to choose another, or unload it first");
  };
  const Resident* const owner = books_.store.by_name(name);
  const bool same_path = owner != nullptr && owner->path == claim.path && books_.manages_all(uid, *owner);
  if (owner != nullptr && !same_path && !owner->source.same_but_ctime(source)) {
    // A file that is resident under other names needs no name of its own.
    if (claim.name.empty() && books_.store.by_source_but_ctime(source) != nullptr) return {};
    return taken(owner->path, books_.may_attach(uid, *owner));
  }
  for (const Claim* const other : coming) {
    const bool managed = books_.rights.manage(uid, other->peer.uid);
    const bool same = other->path == claim.path && managed;
    if (other->wanted_name() == name && !same) return taken(other->path, managed);
  }
  return {};
}

Result<void> Naming::allow(const Claim& claim, Resident& resident) {
  if (!books_.may_attach(claim.peer.uid, resident)) {
    return tl::unexpected(Rights::not_attachable(wire::printable(claim.wanted_name())));
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

Result<std::string> Naming::settle(const Claim& claim, Resident& resident, std::string& outcome) {
  // Names follow the file: what this path was called before, its new generation is called now.
  const uid_t uid = claim.peer.uid;
  Resident* before = books_.store.by_path(claim.path, books_.believed_by(uid));
  if (before != nullptr && before != &resident && !books_.manages_all(uid, *before)) before = nullptr;
  if (before != nullptr && before != &resident) {
    books_.store.move_names(*before, resident);
    reaper_.drain_nameless(*before);
  }
  if (resident.names.empty() || before != nullptr) {
    resident.path = claim.path;
    resident.path_uid = claim.path_uid;
  }
  if (!claim.type.empty() && (resident.names.empty() || books_.manages_any(uid, resident))) {
    resident.type = claim.type;
  }
  if (claim.name.empty() && !resident.names.empty()) return resident.name();
  std::string name = claim.wanted_name();
  const Resident* const owner = books_.store.by_name(name);
  if (claim.any_name && owner != nullptr && owner != &resident) name += "@" + resident.block->name().digest16;
  const bool had_names = !resident.names.empty();
  const bool is_new = std::ranges::find(resident.names, name) == resident.names.end();
  MODELBROKER_TRY(books_.store.add_name(resident, name, uid));
  books_.evicted.forget(name);
  if (had_names && is_new && outcome == "resident") {
    outcome = "alias";
    wire::EventData alias = event_of(resident);
    alias.model = name;
    events_.publish("model.alias", alias);
  }
  return name;
}

}  // namespace modelbroker
