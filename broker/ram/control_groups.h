// Control groups: the folders where the kernel tells this process's limits, of version 1, version 2 and both at once.
//
// Threads: any. Failure: none; what cannot be read is left out, and the reader says that it is not known.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "shm/os.h"

namespace modelbroker {

// Where the kernel tells it; other folders in tests.
struct KernelFolders {
  std::string proc = "/proc";
  std::string cgroup = "/sys/fs/cgroup";
};

// This process's group in one hierarchy, and all groups above it: a limit of each counts.
struct GroupChain {
  bool is_version_1 = false;
  std::vector<std::string> folders;  // its own first, the top last; some may not be there
};
struct ControlGroups {
  bool is_listed = false;           // /proc/self/cgroup could be read
  bool is_under_version_1 = false;  // the controller has a hierarchy of version 1
  std::vector<GroupChain> chains;   // empty: the process is in no group
};
// `controller`: "memory" or "cpu".
[[nodiscard]] ControlGroups control_groups(Os& os, const KernelFolders& folders, std::string_view controller);

// How many bytes the tightest memory limit leaves.
struct GroupMemory {
  std::optional<std::uint64_t> left;  // nothing: no limit, or not known
  bool is_known = false;              // every limit that applies was read
};
[[nodiscard]] GroupMemory memory_left(Os& os, const ControlGroups& groups);

// How many processors this process may use at once: its affinity, and the tightest quota; at least 1.
[[nodiscard]] unsigned usable_cpus(Os& os, const KernelFolders& folders = {});

}  // namespace modelbroker
