// Whether a RAM directory has room to speak of: a container's /dev/shm has 64 MiB unless somebody says otherwise.
//
// Threads: any. Failure: failed_precondition with what can be done.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "shm/error.h"
#include "shm/os.h"

namespace modelbroker {

// A probe's file has 2 MiB, the state database and its log are files too.
inline constexpr std::uint64_t kSmallFileLimit = 16ULL << 20;

// Below this a file system was not made for models, and an explicit budget must say that it is meant.
inline constexpr std::uint64_t kSmallRoom = 256ULL << 20;

// Bytes of the file system in all; nothing where it has no limit of its own (a tmpfs with size=0).
[[nodiscard]] Result<std::optional<std::uint64_t>> total_room(Os& os, const std::string& directory);
// What a file system has left, as it is now: others may fill it too.
struct FileSystemRoom {
  std::optional<std::uint64_t> free;  // bytes; nothing: no limit of its own, or not known
  std::uint64_t total = 0;
  bool has_inodes = true;  // one more file can be made
};
[[nodiscard]] FileSystemRoom file_system_room(Os& os, const std::string& directory);
// resource_exhausted with the numbers. `what` names the file that needs so many bytes.
[[nodiscard]] Error no_room(const std::string& what, std::uint64_t needed, const std::string& directory,
                            const FileSystemRoom& room);
// Refuses a small file system without an explicit budget, and a budget that does not fit into it.
[[nodiscard]] Result<void> check_room(Os& os, const std::string& directory, std::optional<std::uint64_t> budget);
// Refuses a limit of file sizes (`ulimit -f`) under which nothing works.
[[nodiscard]] Result<void> check_file_limit();
// Refuses a block of that many bytes where this process may not make so large a file. `what`: the source, in quotes.
[[nodiscard]] Result<void> check_file_limit(std::uint64_t block, const std::string& what);
// What to do about a small one.
[[nodiscard]] std::string room_advice();

}  // namespace modelbroker
