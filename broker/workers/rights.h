// Rights: every answer to "may this peer do that?", from what the kernel says of it and from nothing else.
//
// The broker's own uid and root may do everything. With a group, its members list, attach and load, release what is
// theirs, and unload and pin what they loaded. Anybody else does not even get a connection. docs/protocol.md says
// it by request. Threads: any; it does not change.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>

#include "broker/workers/peer.h"
#include "shm/error.h"

namespace modelbroker {

class Rights {
 public:
  Rights(uid_t own, std::optional<gid_t> group) noexcept : own_(own), group_(group) {}

  [[nodiscard]] std::optional<gid_t> group() const noexcept { return group_; }

  [[nodiscard]] bool everything(uid_t uid) const noexcept { return uid == own_ || uid == 0; }
  // A connection, and every request that is about nobody's models.
  [[nodiscard]] bool enter(const Peer& peer) const noexcept;

  // Whose a block is.
  struct Owner {
    uid_t loader = 0;         // whoever loaded it first
    uid_t source = 0;         // the file's
    bool is_private = false;  // the group could not read the file
  };
  [[nodiscard]] bool attach(uid_t uid, const Owner& owner) const noexcept {
    return !owner.is_private || everything(uid) || uid == owner.loader || uid == owner.source;
  }
  // Unload, pin and the like: `loader` gave the name.
  [[nodiscard]] bool manage(uid_t uid, uid_t loader) const noexcept { return everything(uid) || uid == loader; }

  // The refusals.
  [[nodiscard]] Error not_served(uid_t uid) const;
  [[nodiscard]] static Error not_attachable(const std::string& model);
  [[nodiscard]] static Error not_manageable(const std::string& model, uid_t loader);

 private:
  uid_t own_;
  std::optional<gid_t> group_;
};

}  // namespace modelbroker
