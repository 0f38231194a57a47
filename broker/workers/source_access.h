// Source access: whether somebody could read a file without our help, and opening files for others beneath model
// folders and nowhere else.
//
// Threads: any; may wait for a file system, so a job's work. Failure: false or nothing, which say "no" and no more: who
// asks must not learn why.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "broker/workers/peer.h"
#include "shm/fd.h"
#include "shm/os.h"

namespace modelbroker {

// By the mode bits of the file and of every folder above it. What cannot be seen from here (a file without a path, or
// in another mount namespace) or has rights beyond those bits counts as unreadable.
[[nodiscard]] bool could_read(Os& os, int fd, const Peer& peer);
// The same for any member of a group, whoever it is.
[[nodiscard]] bool could_read(Os& os, int fd, gid_t group);

// The regular file at `path` (absolute), if the way there leads through the folders alone. A link may lead to another
// of them.
[[nodiscard]] std::optional<Fd> open_in_folders(Os& os, const std::vector<std::string>& folders,
                                                const std::string& path);

}  // namespace modelbroker
