// Look: what is found of a source file before anything is decided about its load.
//
// Threads: any; it is a job's, for the file may lie on a file system that hangs. Failure: permission_denied for a path
// that the peer may not have loaded, not_found and the like for our own, data_loss for a file that is being written.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "broker/formats/directory.h"
#include "broker/workers/peer.h"
#include "shm/os.h"

namespace modelbroker {

struct Look {
  FileIdentity source;
  uid_t uid = 0;            // whose file it is
  bool is_private = false;  // the group cannot read it
  bool is_label = false;    // the path: a group member told it, and the broker did not find the file there
};

// What a look needs to know of who asks, and of the broker's configuration.
struct LookOrder {
  Peer peer;
  std::string path;
  bool everything = false;           // the peer may load what the broker can read
  std::optional<gid_t> group;        // whose members share blocks
  std::vector<std::string> folders;  // others load by a path from these only
};

// Opens the file where none is given, and waits a moment for its writer. A path that a member tells with a file is more
// than a label only if it leads to that very file through the model folders.
[[nodiscard]] Result<Look> look_at_source(Os& os, const LookOrder& order, Fd& file);

}  // namespace modelbroker
