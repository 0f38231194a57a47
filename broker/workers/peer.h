// Peer: who is at the other end of a connection, as the kernel told it. Threads: a value.
#pragma once

#include <sys/types.h>

#include <vector>

namespace modelbroker {

struct Peer {
  uid_t uid = 0;
  pid_t pid = 0;                // 0: not known (another pid namespace)
  std::vector<gid_t> groups{};  // its first one and, where the kernel tells, the others
};

}  // namespace modelbroker
