// Naming: which name, path and type a block gets from a load, and whether it is for this peer at all.
//
// Threads: the loop's. Failure: already_exists for a name that another file has, permission_denied for another user's
// private block.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "broker/models/books.h"

namespace modelbroker {

// What a peer wants its model to be called, and what is known of its file.
struct Claim {
  Peer peer;
  std::string path, name, type;      // an empty name: the one it has, else default_name()
  std::optional<uid_t> name_loader;  // who gave the name, if not the peer
  std::uint64_t asked = 0;           // the order in which files were looked at: what a path led to last, counts
  bool is_label = false;             // the path, see GivenName
  uid_t source_uid = 0;
  bool is_private = false;  // the group cannot read it
  bool any_name = false;    // a free one, if default_name() is taken
  [[nodiscard]] std::string wanted_name() const;
  // Whose the name is, or would be.
  [[nodiscard]] uid_t manager() const { return name_loader.value_or(peer.uid); }
};

class Naming {
 public:
  explicit Naming(Books& books) : books_(books) {}

  // Refuses a name that another file has, or is about to get, before anything is read. `coming`: claims on other files
  // that are being loaded. `is_compared`: what is alike, and not equal, was found to have other bytes.
  [[nodiscard]] Result<void> check(const Claim& claim, const FileIdentity& source,
                                   const std::vector<const Claim*>& coming, bool is_compared = false) const;
  // Whether this block is for the peer; opens it to the group or closes it as its file was.
  [[nodiscard]] Result<void> allow(const Claim& claim, Resident& resident);
  struct Settled {
    std::string name;        // by which the block answers to this claim
    std::string superseded;  // a block that has no name any more: to be drained once the new one's names are written
    std::string shrunk;      // or one that has lost names and kept others
    std::vector<std::string> aliases;  // other names that lead to the block now, and did not before
  };
  // `outcome` becomes "alias" where it is one name more. stale_generation: the path leads elsewhere since.
  [[nodiscard]] Result<Settled> settle(const Claim& claim, Resident& resident, std::string& outcome);

 private:
  [[nodiscard]] Resident* before(const Claim& claim, const Resident& resident);
  [[nodiscard]] bool is_outdated(const Claim& claim, const Resident& before) const;
  [[nodiscard]] std::string name_at(const std::string& path, const Resident& resident) const;
  [[nodiscard]] Result<std::string> new_name(const Claim& claim, const Resident& resident, const Resident* before);
  void take_over(const Claim& claim, Resident& before, Resident& resident, Settled& settled);
  // No `owner`: somebody else's evicted model has it.
  [[nodiscard]] Error taken(const std::string& name, const Resident* owner, uid_t asker) const;
  [[nodiscard]] bool is_managed(const Claim& claim, const EvictedNames::Model& evicted) const;
  [[nodiscard]] bool is_kept_for_another(const Claim& claim, const std::string& name, const FileIdentity& source) const;
  [[nodiscard]] GivenName given_by(const Claim& claim, const std::string& name) const;
  void keep_as_evicted(const Claim& claim, const std::string& name, Resident& resident) const;
  void settle_privacy(const Claim& claim, Resident& resident);

  Books& books_;
};

}  // namespace modelbroker
