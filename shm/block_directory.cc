#include <fcntl.h>
#include <linux/magic.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <set>

#include "shm/block.h"

namespace modelbroker {
namespace {

constexpr std::string_view kNoDigest = "0000000000000000";

// `names`: how many of its links are known to be ours.
bool safe_to_touch(const struct stat& found, std::uint32_t uid, nlink_t names = 1) {
  return S_ISREG(found.st_mode) && found.st_uid == uid && found.st_nlink == names;
}

struct Found {
  BlockName name;
  struct stat stat;
};

using Inode = std::pair<dev_t, ino_t>;
Inode inode_of(const struct stat& found) { return {found.st_dev, found.st_ino}; }

int rank(BlockState state) { return state == BlockState::kPublished ? 0 : state == BlockState::kDraining ? 1 : 2; }

Result<void> check_file_system(Os& os, const std::string& path) {
  const auto found = os.statfs(path);
  if (!found) return fail_errno(found.error().number, "looking at the RAM directory '" + path + "'");
  if (found->f_type == TMPFS_MAGIC) return {};
  return fail(ErrorCode::kFailedPrecondition,
              "the RAM directory '" + path +
                  "' is not on a tmpfs, so blocks there would be files on a disk: choose /dev/shm or "
                  "another tmpfs, or force it with --any-file-system");
}

// Whoever may write to a folder may remove and rename what lies in it, unless it is sticky.
Result<void> check_folder(Os& os, int folder, const std::string& path) {
  const auto found = os.fstat(folder);
  if (!found) return fail_errno(found.error().number, "looking at the RAM directory '" + path + "'");
  const bool sticky = (found->st_mode & S_ISVTX) != 0;
  if (sticky || (found->st_mode & (S_IWGRP | S_IWOTH)) == 0) return {};
  return fail(ErrorCode::kFailedPrecondition,
              "others may remove what lies in the RAM directory '" + path +
                  "': choose /dev/shm, or make it sticky (chmod +t) or your own (chmod 700)");
}

}  // namespace

Result<BlockDirectory> BlockDirectory::lock(Os& os, std::string path, std::string instance, bool any_file_system) {
  if (!valid_instance(instance)) {
    return fail(ErrorCode::kInvalidArgument,
                "the instance '" + instance.substr(0, 64) + "' must have 1 to 32 characters of a-z, 0-9 and '-'");
  }
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  const auto folder = os.open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
  if (!folder) return fail_errno(folder.error().number, "opening the RAM directory '" + path + "'");
  MODELBROKER_TRY(check_folder(os, folder->get(), path));
  if (!any_file_system) MODELBROKER_TRY(check_file_system(os, path));
  BlockDirectory directory;
  directory.uid_ = os.uid();
  const std::string lock = path + "/" + lock_file_name(directory.uid_, instance);
  MODELBROKER_ASSIGN(directory.lock_,
                     LockFile::take(os, lock,
                                    "another broker (instance '" + instance + "') uses this folder: it holds '" + lock +
                                        "'; stop it or choose --instance"));
  directory.path_ = std::move(path);
  directory.instance_ = std::move(instance);
  if (directory.lock_->is_new()) {
    if (auto alone = directory.check_nobody_holds_a_block(os); !alone) {
      directory.lock_->undo(os);  // the next who tries is to be refused as well
      return tl::unexpected(std::move(alone).error());
    }
  }
  return directory;
}

Result<void> BlockDirectory::check_nobody_holds_a_block(Os& os) const {
  MODELBROKER_ASSIGN(const Listing listing, list(os));
  for (const BlockName& name : listing.blocks) {
    const std::string path = path_of(name);
    const auto file = os.open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0);
    if (!file) continue;  // whoever adopts it says why
    const auto locked = os.lock_exclusive(file->get());
    if (locked || locked.error().number != EWOULDBLOCK) continue;
    return fail(ErrorCode::kFailedPrecondition, "the lock '" + lock_->path() +
                                                    "' was removed while another broker (instance '" + instance_ +
                                                    "') runs: it holds '" + path + "'; stop it or choose --instance");
  }
  return {};
}

BlockName BlockDirectory::temporary(std::uint64_t generation) const {
  return {uid_, instance_, std::string(kNoDigest), generation, BlockState::kTemporary};
}

std::string BlockDirectory::path_of(const BlockName& name) const { return path_ + "/" + name.file_name(); }

Result<BlockDirectory::Listing> BlockDirectory::list(Os& os) const {
  const auto names = os.list_directory(path_);
  if (!names) return fail_errno(names.error().number, "listing '" + path_ + "'");
  std::vector<Found> files;
  std::map<Inode, nlink_t> known;  // how many names of each file are ours
  for (const std::string& file_name : *names) {
    auto name = BlockName::parse(file_name);
    if (!name || name->uid != uid_ || name->instance != instance_) continue;
    const auto found = os.lstat(path_ + "/" + file_name);
    if (!found && found.error().number == ENOENT) continue;  // gone meanwhile
    if (!found) return fail_errno(found.error().number, "looking at '" + path_ + "/" + file_name + "'");
    files.push_back({std::move(*name), *found});
    ++known[inode_of(*found)];
  }
  // What may be attached goes before what drains, and that before what is being made.
  std::ranges::stable_sort(files, {}, [](const Found& file) { return rank(file.name.state); });
  Listing listing;
  std::set<Inode> inodes;
  std::set<std::string> ids;
  for (Found& file : files) {
    const Inode inode = inode_of(file.stat);
    if (!safe_to_touch(file.stat, uid_, known[inode])) {
      listing.foreign.push_back(file.name.file_name());
    } else if (const bool is_new = inodes.insert(inode).second; ids.insert(file.name.id()).second && is_new) {
      listing.blocks.push_back(std::move(file.name));
    } else {
      listing.doubles.push_back(std::move(file.name));
    }
  }
  return listing;
}

Result<void> BlockDirectory::remove_double(Os& os, const BlockName& name) const {
  const std::string path = path_of(name);
  if (auto removed = os.unlink(path); !removed && removed.error().number != ENOENT) {
    return fail_errno(removed.error().number, "removing '" + path + "', a second name of a block");
  }
  return {};
}

Result<std::uint64_t> BlockDirectory::remove(Os& os, const BlockName& name) const {
  const std::string path = path_of(name);
  const auto found = os.lstat(path);
  if (!found) return fail_errno(found.error().number, "looking at block '" + path + "'");
  if (!safe_to_touch(*found, uid_)) {
    return fail(ErrorCode::kFailedPrecondition, "'" + path + "' is not a block of ours: left alone");
  }
  if (auto removed = os.unlink(path); !removed) {
    return fail_errno(removed.error().number, "removing block '" + path + "'");
  }
  return static_cast<std::uint64_t>(found->st_blocks) * 512;
}

}  // namespace modelbroker
