// The run directory: sockets, lock and state, in a folder that nobody else can write to or put another in its place.
//
// Threads: any. Failure: failed_precondition that names the folder and the remedy, or what the system said.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <utility>

#include "shm/error.h"
#include "shm/fd.h"
#include "shm/file_mark.h"
#include "shm/lock_file.h"
#include "shm/os.h"

namespace modelbroker {

// The group's number, from its name or the number itself; nothing for an empty name.
[[nodiscard]] Result<std::optional<gid_t>> group_of(const std::string& name);

// The folder as it was checked. A shared lock on it keeps cleaners out: systemd-tmpfiles leaves a locked folder alone.
class RunDirectory {
 public:
  // Makes it (0700, or 0750 and the group's) or takes it over, if it is ours and safe.
  [[nodiscard]] static Result<RunDirectory> make(Os& os, std::string path, std::optional<gid_t> group);
  [[nodiscard]] const std::string& path() const noexcept { return path_; }
  // True if it was removed, or another folder stood there, and it has been made or taken over as at the start.
  [[nodiscard]] Result<bool> look(Os& os);

 private:
  RunDirectory(std::string path, std::optional<gid_t> group, Fd folder, FileMark mark)
      : path_(std::move(path)), group_(group), folder_(std::move(folder)), mark_(std::move(mark)) {}
  std::string path_;
  std::optional<gid_t> group_;
  Fd folder_;  // has the lock
  FileMark mark_;
};

// Before any bind: a second bind on an ipc path succeeds silently and steals it.
[[nodiscard]] Result<LockFile> lock_run_directory(Os& os, const std::string& path);

// A socket that was bound 0600: 0660 and the group's, where there is one.
[[nodiscard]] Result<void> open_socket_to_group(Os& os, const std::string& path, std::optional<gid_t> group);

}  // namespace modelbroker
