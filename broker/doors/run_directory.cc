#include "broker/doors/run_directory.h"

#include <fcntl.h>
#include <grp.h>
#include <sys/stat.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <filesystem>
#include <system_error>
#include <vector>

#include "shm/text.h"

namespace modelbroker {
namespace {

constexpr mode_t kOthersMayWrite = 022;

Error cannot_give(int number, const std::string& what, gid_t group) {
  Error error = error_from_errno(number, "giving " + what + " to group " + std::to_string(group));
  if (number == EPERM) error.message += ": the user that serves must be a member of it";
  return error;
}

// In a user namespace files of users that are not mapped all look like one.
bool unmapped(Os& os, uid_t uid) {
  const auto overflow = os.read_text("/proc/sys/kernel/overflowuid");
  const auto map = os.read_text("/proc/self/uid_map");
  if (!overflow || !map || *overflow != std::to_string(uid) + "\n") return false;
  return map->find("4294967295") == std::string::npos;
}

// Nobody but root and ourselves could rename what lies in this folder. A sticky bit protects it; a group of one user's
// own (its number is the user's) and root's are no danger.
bool safe_above(Os& os, const struct stat& found) {
  if (found.st_uid != 0 && found.st_uid != os.uid() && !unmapped(os, found.st_uid)) return false;
  if (S_ISLNK(found.st_mode) || (found.st_mode & S_ISVTX) != 0) return true;
  if ((found.st_mode & S_IWOTH) != 0) return false;
  return (found.st_mode & S_IWGRP) == 0 || found.st_gid == 0 || found.st_gid == found.st_uid;
}

Result<void> check_above(Os& os, const std::filesystem::path& path) {
  for (std::filesystem::path above = path.parent_path(); above != above.root_path(); above = above.parent_path()) {
    const auto found = os.lstat(above.string());
    if (!found) return fail_errno(found.error().number, "looking at '" + above.string() + "'");
    if (safe_above(os, *found)) continue;
    return fail(ErrorCode::kFailedPrecondition,
                "somebody else could put another folder in the place of the run directory, for '" + above.string() +
                    "' is not safe from other users: choose another --run-directory");
  }
  return {};
}

}  // namespace

Result<std::optional<gid_t>> group_of(const std::string& name) {
  if (name.empty()) return std::optional<gid_t>();
  std::vector<char> buffer(std::size_t{64} << 10);
  group entry{};
  group* found = nullptr;
  if (const int error = ::getgrnam_r(name.c_str(), &entry, buffer.data(), buffer.size(), &found);
      error == 0 && found != nullptr) {
    return std::optional(found->gr_gid);
  }
  gid_t number = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), number);
  if (error == std::errc() && end == name.data() + name.size() && number != static_cast<gid_t>(-1)) {
    return std::optional(number);
  }
  return fail(ErrorCode::kInvalidArgument, "there is no group '" + printable(name, 64) +
                                               "': make it (groupadd), or give --group another or its number");
}

Result<RunDirectory> RunDirectory::make(Os& os, std::string path, std::optional<gid_t> group) {
  if (auto made = os.mkdir(path, 0700); !made && made.error().number != EEXIST) {
    return fail_errno(made.error().number, "making the run directory '" + path + "'");
  }
  auto folder = os.open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
  if (!folder && folder.error().number != ENOTDIR && folder.error().number != ELOOP) {
    return fail_errno(folder.error().number, "opening the run directory '" + path + "'");
  }
  const auto found = folder ? os.fstat(folder->get()) : os.lstat(path);
  if (!found) return fail_errno(found.error().number, "looking at the run directory '" + path + "'");
  if (!folder || found->st_uid != os.uid() || (found->st_mode & kOthersMayWrite) != 0) {
    return fail(ErrorCode::kFailedPrecondition,
                "the run directory '" + path +
                    "' must be a folder of your own that others cannot write to: choose another --run-directory");
  }
  MODELBROKER_TRY(check_above(os, path));
  std::error_code error;
  const std::filesystem::path real = std::filesystem::canonical(path, error);
  if (!error && real != path) MODELBROKER_TRY(check_above(os, real));
  if (group) {
    if (auto given = os.fchgrp(folder->get(), *group); !given) {
      return tl::unexpected(cannot_give(given.error().number, "the run directory '" + path + "'", *group));
    }
    if (auto opened = os.fchmod(folder->get(), 0750); !opened) {
      return fail_errno(opened.error().number, "opening the run directory '" + path + "' to its group");
    }
  }
  (void)os.lock_shared(folder->get());
  FileMark mark(path, *found);
  return RunDirectory(std::move(path), group, std::move(*folder), std::move(mark));
}

Result<bool> RunDirectory::look(Os& os) {
  if (mark_.in_place(os)) {
    (void)os.lock_shared(folder_.get());  // a cleaner at work may have had it
    return false;
  }
  MODELBROKER_ASSIGN(*this, make(os, path_, group_));
  return true;
}

Result<LockFile> lock_run_directory(Os& os, const std::string& path) {
  auto lock = LockFile::take(os, path + "/lock",
                             "another broker serves '" + path +
                                 "': stop it, or choose another --run-directory (and --instance, if both use the same "
                                 "--ram-directory)");
  if (lock || !LockFile::is_held(lock.error())) return lock;
  const std::string socket = path + "/broker.sock";
  if (const auto found = os.lstat(socket); !found && found.error().number == ENOENT) {
    lock.error().message += "; its socket '" + socket +
                            "' is missing: a broker that starts makes it soon, one that runs makes it again within a "
                            "second, and one that does neither hangs: end its process";
  }
  return lock;
}

Result<void> open_socket_to_group(Os& os, const std::string& path, std::optional<gid_t> group) {
  if (!group) return {};
  if (auto given = os.give_to_group(path, *group, 0660); !given) {
    return tl::unexpected(cannot_give(given.error().number, "'" + path + "'", *group));
  }
  return {};
}

}  // namespace modelbroker
