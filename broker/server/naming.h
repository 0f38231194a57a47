// Naming: which name, path and type a block gets from a load, and whether it is for this peer at all.
//
// Threads: the loop's. Failure: already_exists for a name that another file has, permission_denied for another user's
// private block.
#pragma once

#include <string>
#include <vector>

#include "broker/server/books.h"
#include "broker/server/events.h"
#include "broker/server/reaper.h"

namespace modelbroker {

// What a peer wants its model to be called, and what is known of its file.
struct Claim {
  Peer peer;
  std::string path, name, type;  // an empty name: the one it has, else the file's stem
  uid_t path_uid = 0;            // who says that the file lies there
  uid_t source_uid = 0;
  bool is_private = false;  // the group cannot read it
  bool any_name = false;    // a free one, if the file's stem is taken
  [[nodiscard]] std::string wanted_name() const;
};

class Naming {
 public:
  Naming(Books& books, Reaper& reaper, Events& events) : books_(books), reaper_(reaper), events_(events) {}

  // Refuses a name that another file has, or is about to get, before anything is read. `coming`: claims on other files
  // that are being loaded.
  [[nodiscard]] Result<void> check(const Claim& claim, const FileIdentity& source,
                                   const std::vector<const Claim*>& coming) const;
  // Whether this block is for the peer; opens it to the group or closes it as its file was.
  [[nodiscard]] Result<void> allow(const Claim& claim, Resident& resident);
  // The name by which the block answers to this claim; `outcome` becomes "alias" where it is one more.
  [[nodiscard]] Result<std::string> settle(const Claim& claim, Resident& resident, std::string& outcome);

 private:
  void settle_privacy(const Claim& claim, Resident& resident);

  Books& books_;
  Reaper& reaper_;
  Events& events_;
};

// The file's name without folder and suffix: a model's default name.
[[nodiscard]] std::string stem_of(const std::string& path);

}  // namespace modelbroker
