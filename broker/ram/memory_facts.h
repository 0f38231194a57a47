// What the machine has left: for the budget, and for loads that must stop before the OOM killer comes.
//
// Threads: any. Failure: typed, and names the file that could not be read.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "broker/ram/control_groups.h"
#include "shm/error.h"
#include "shm/os.h"

namespace modelbroker {

struct MemoryFacts {
  std::uint64_t available = 0;         // MemAvailable of /proc/meminfo
  std::uint64_t file_system_free = 0;  // of the RAM directory
  // Where there is a limit, in version 1 or 2: the limit, less what is used and is not page cache.
  std::optional<std::uint64_t> cgroup_left{};
  bool cgroup_known = false;  // every limit that applies could be read
};
[[nodiscard]] Result<MemoryFacts> read_memory_facts(Os& os, const std::string& directory,
                                                    const KernelFolders& folders = {});
// min(70 % of available, 90 % of the file system's free, cgroup's rest - 512 MiB), each plus `held`.
[[nodiscard]] std::uint64_t default_limit(const MemoryFacts& facts, std::uint64_t held) noexcept;

// Headroom: whether so many bytes more may be made. The OOM killer comes before ENOSPC, so a load asks this before
// each chunk. Where the kernel tells nothing, nothing is refused.
class Headroom {
 public:
  Headroom(Os& os, std::uint64_t reserve, KernelFolders folders = {})
      : os_(&os), reserve_(reserve), groups_(control_groups(os, folders, "memory")), folders_(std::move(folders)) {}
  // resource_exhausted with the numbers, when less than the reserve would be left.
  [[nodiscard]] Result<void> check(std::uint64_t bytes) const;

 private:
  Os* os_;
  std::uint64_t reserve_;
  ControlGroups groups_;
  KernelFolders folders_;
};

}  // namespace modelbroker
