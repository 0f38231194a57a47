// Place: what a living broker needs in its folders: the run directory, its locks, its sockets.
//
// Looked at once a second: what a cleaner or a user removed is made again. If another broker has taken a lock
// meanwhile, this one ends and leaves everything to it. Threads: the loop's only.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "broker/base/loop.h"
#include "broker/doors/run_directory.h"
#include "shm/file_mark.h"
#include "shm/lock_file.h"
#include "shm/os.h"

namespace modelbroker {

[[nodiscard]] Result<void> remove_stale_sockets(Os& os, std::span<const std::string> paths);

class Place {
 public:
  // `ram_lock`: the RAM directory's, which outlives this.
  Place(Os& os, Loop& loop, RunDirectory run_directory, LockFile run_lock, LockFile& ram_lock,
        std::optional<gid_t> group)
      : os_(os),
        loop_(loop),
        run_directory_(std::move(run_directory)),
        run_lock_(std::move(run_lock)),
        ram_lock_(ram_lock),
        group_(group) {}
  Place(const Place&) = delete;
  Place& operator=(const Place&) = delete;

  // A socket that is open now, and how to open it again.
  void add_socket(const std::string& path, std::function<Result<void>()> open);
  // Folder and locks: made or taken again if they were removed.
  [[nodiscard]] Result<void> hold();
  // From now on everything, once a second; `each_time` is called too.
  void keep(std::function<void()> each_time) {
    each_time_ = std::move(each_time);
    keep();
  }
  void remove_sockets();
  // Another broker has a lock of ours.
  [[nodiscard]] const std::optional<Error>& displaced() const noexcept { return displaced_; }

 private:
  struct Socket {
    std::string path;
    std::function<Result<void>()> open;
    FileMark mark;
  };
  [[nodiscard]] Result<void> hold_lock(LockFile& lock);
  [[nodiscard]] Result<void> hold_sockets();
  void keep();

  Os& os_;
  Loop& loop_;
  RunDirectory run_directory_;
  LockFile run_lock_;
  LockFile& ram_lock_;
  const std::optional<gid_t> group_;
  std::function<void()> each_time_ = [] {};
  std::vector<Socket> sockets_;  // in the order of their opening
  std::optional<Error> displaced_;
};

}  // namespace modelbroker
