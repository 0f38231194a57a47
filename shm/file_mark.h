// FileMark: which file stood at a path when we looked, so that a later look tells whether it still does.
//
// Threads: a value. Failure: what cannot be looked at counts as unchanged, until a later look can tell.
#pragma once

#include <sys/stat.h>

#include <cerrno>
#include <string>
#include <utility>

#include "shm/os.h"

namespace modelbroker {

class FileMark {
 public:
  FileMark() = default;  // of nothing: always in place
  FileMark(std::string path, const struct stat& found)
      : path_(std::move(path)), device_(found.st_dev), inode_(found.st_ino), known_(true) {}
  // Of what stands there now.
  [[nodiscard]] static FileMark of(Os& os, std::string path) {
    const auto found = os.lstat(path);
    return found ? FileMark(std::move(path), *found) : FileMark();
  }

  // False: it was removed, or another file stands there. True too where none stood there at first.
  [[nodiscard]] bool in_place(Os& os) const {
    if (!known_) return true;
    const auto found = os.lstat(path_);
    if (!found) return found.error().number != ENOENT && found.error().number != ENOTDIR;
    return found->st_dev == device_ && found->st_ino == inode_;
  }

 private:
  std::string path_;
  dev_t device_ = 0;
  ino_t inode_ = 0;
  bool known_ = false;
};

}  // namespace modelbroker
