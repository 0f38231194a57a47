// What memory really costs this process, as the kernel counts it. Linux.
#pragma once

#include <cstddef>
#include <set>

namespace example {

// Bytes of private memory of this process (RssAnon).
[[nodiscard]] std::size_t private_bytes();

// What the mappings cost that hold some addresses (/proc/self/smaps), in bytes.
struct Mapped {
  std::size_t resident = 0;
  std::size_t proportional = 0;  // shared pages counted by 1 / number of processes
  std::size_t copied = 0;        // pages that this process wrote to and so has for itself
};
[[nodiscard]] Mapped mapped(const std::set<const void*>& addresses);

}  // namespace example
