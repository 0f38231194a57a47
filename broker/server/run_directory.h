// The run directory: sockets, lock and state, in a folder that nobody else can write to or put another in its place.
//
// Threads: any. Failure: failed_precondition that names the folder and the remedy, or what the system said.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>

#include "shm/error.h"
#include "shm/lock_file.h"
#include "shm/os.h"

namespace modelbroker {

// The group's number, from its name or the number itself; nothing for an empty name.
[[nodiscard]] Result<std::optional<gid_t>> group_of(const std::string& name);

// Makes the folder (0700, or 0750 and the group's) or takes it over, if it is ours and safe.
[[nodiscard]] Result<void> make_run_directory(Os& os, const std::string& path, std::optional<gid_t> group);

// Before any bind: a second bind on an ipc path succeeds silently and steals it.
[[nodiscard]] Result<LockFile> lock_run_directory(Os& os, const std::string& path);

// A socket that was bound 0600: 0660 and the group's, where there is one.
[[nodiscard]] Result<void> open_socket_to_group(Os& os, const std::string& path, std::optional<gid_t> group);

}  // namespace modelbroker
