#include "broker/ram/room.h"

#include "broker/base/sizes.h"
#include "shm/limits.h"

namespace modelbroker {

Result<std::optional<std::uint64_t>> total_room(Os& os, const std::string& directory) {
  const auto found = os.statfs(directory);
  if (!found) return fail_errno(found.error().number, "looking at the RAM directory '" + directory + "'");
  if (found->f_blocks == 0) return std::nullopt;
  return found->f_blocks * static_cast<std::uint64_t>(found->f_bsize);
}

FileSystemRoom file_system_room(Os& os, const std::string& directory) {
  FileSystemRoom room;
  const auto found = os.statfs(directory);
  if (!found) return room;
  const auto unit = static_cast<std::uint64_t>(found->f_bsize);
  room.total = found->f_blocks * unit;
  if (found->f_blocks > 0) room.free = found->f_bavail * unit;
  room.has_inodes = found->f_files == 0 || found->f_ffree > 0;
  return room;
}

Error no_room(const std::string& what, std::uint64_t needed, const std::string& directory, const FileSystemRoom& room) {
  const std::string advice = ": remove files that are not needed (ls -la " + directory +
                             "), unload a model, or give another tmpfs by --ram-directory";
  const std::uint64_t free = room.free.value_or(0);
  Error error{ErrorCode::kResourceExhausted, what + " needs " + format_size(needed)};
  error.details = {{"needed", needed}, {"directory_free", free}, {"directory_size", room.total}};
  if (!room.has_inodes) {
    error.message += " and one file in '" + directory + "', which cannot have more files (its inodes are used up)";
  } else {
    error.message += " in '" + directory + "', which has " + format_size(free) + " free of " + format_size(room.total);
  }
  error.message += advice;
  return error;
}

std::string room_advice() {
  return "in a container start it with a larger one (docker run --shm-size=48g), with the host's (--ipc=host, or "
         "-v /dev/shm:/dev/shm), or give another tmpfs by --ram-directory";
}

Result<void> check_room(Os& os, const std::string& directory, std::optional<std::uint64_t> budget) {
  MODELBROKER_ASSIGN(const auto total, total_room(os, directory));
  if (!total) return {};
  const std::string has = "the RAM directory '" + directory + "' has only " + format_size(*total) + " in all";
  if (budget && *budget > *total) {
    return fail(ErrorCode::kFailedPrecondition,
                has + ", less than the budget of " + format_size(*budget) + ": " + room_advice(),
                {{"total", *total}, {"budget", *budget}});
  }
  if (!budget && *total < kSmallRoom) {
    return fail(ErrorCode::kFailedPrecondition,
                has + ": " + room_advice() + "; if so little is meant, say it by --ram-budget", {{"total", *total}});
  }
  return {};
}

Result<void> check_file_limit() {
  const auto limit = file_size_limit();
  if (!limit || *limit >= kSmallFileLimit) return {};
  return fail(ErrorCode::kFailedPrecondition,
              "files of this process may have at most " + format_size(*limit) + ", and a broker needs at least " +
                  format_size(kSmallFileLimit) + ": raise that by " + file_size_advice(),
              {{"file_size_limit", *limit}});
}

Result<void> check_file_limit(std::uint64_t block, const std::string& what) {
  const auto limit = file_size_limit();
  if (!limit || *limit >= block) return {};
  return fail(ErrorCode::kResourceExhausted,
              what + " needs a block of " + format_size(block) + ", and files of the broker may have at most " +
                  format_size(*limit) + " (its limit of file sizes): raise that by " + file_size_advice(),
              {{"needed", block}, {"file_size_limit", *limit}});
}

}  // namespace modelbroker
