#include "shm/lock_file.h"

#include <fcntl.h>

#include <cerrno>

namespace modelbroker {
namespace {

constexpr int kFlags = O_RDWR | O_CLOEXEC | O_NOFOLLOW;

tl::unexpected<Error> not_ours(const std::string& path) {
  return fail(ErrorCode::kFailedPrecondition,
              "the lock '" + path + "' is not a regular file of ours with one link: remove it");
}

}  // namespace

Result<LockFile> LockFile::take(Os& os, std::string path, std::string held) {
  bool is_new = false;
  auto file = os.open(path, kFlags, 0600);
  if (!file && file.error().number == ENOENT) {
    is_new = true;
    file = os.open(path, kFlags | O_CREAT, 0600);
  }
  if (!file && file.error().number == ELOOP) return not_ours(path);
  if (!file) return fail_errno(file.error().number, "opening the lock '" + path + "'");
  const auto found = os.fstat(file->get());
  if (!found) return fail_errno(found.error().number, "looking at the lock '" + path + "'");
  if (!S_ISREG(found->st_mode) || found->st_uid != os.uid() || found->st_nlink != 1) return not_ours(path);
  if (auto locked = os.lock_exclusive(file->get()); !locked) {
    if (locked.error().number != EWOULDBLOCK) return fail_errno(locked.error().number, "locking '" + path + "'");
    return fail(ErrorCode::kFailedPrecondition, std::move(held), {{"held", 1}});
  }
  return LockFile(std::move(path), std::move(held), std::move(*file), is_new);
}

Result<bool> LockFile::look(Os& os) {
  const auto ours = os.fstat(file_.get());
  const auto named = os.lstat(path_);
  if (!ours || (!named && named.error().number != ENOENT)) return false;  // cannot tell: the next look may
  if (named && named->st_ino == ours->st_ino && named->st_dev == ours->st_dev) return false;
  MODELBROKER_ASSIGN(*this, take(os, path_, held_));
  return true;
}

void LockFile::undo(Os& os) noexcept {
  (void)os.unlink(path_);
  file_.reset();
}

}  // namespace modelbroker
