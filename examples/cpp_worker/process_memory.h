// What memory really costs this process, as the kernel counts it. Linux.
#pragma once

#include <cstddef>
#include <span>

namespace example {

// Bytes of private memory of this process (RssAnon).
[[nodiscard]] std::size_t private_bytes();

// Bytes of the mappings that hold some memory (/proc/self/smaps).
struct Mapped {
  std::size_t resident = 0;
  std::size_t proportional = 0;  // shared pages counted by 1 / number of processes
  std::size_t copied = 0;        // pages that this process wrote to and so has for itself
};
[[nodiscard]] Mapped mapped(std::span<const std::byte> memory);

}  // namespace example
