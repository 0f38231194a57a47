// Kernel numbers that Debian 12's headers lack, each from the kernel's own uapi headers.
#pragma once

#include <cstdint>

namespace modelbroker {

inline constexpr int kMadvPopulateRead = 22;     // asm-generic/mman-common.h, Linux 5.14
inline constexpr int kMadvPopulateWrite = 23;    // the same
inline constexpr int kMadvCollapse = 25;         // Linux 6.1
inline constexpr unsigned kRenameNoReplace = 1;  // linux/fs.h
inline constexpr int kSoPeerPidfd = 77;          // asm-generic/socket.h, Linux 6.5
inline constexpr long kSysCachestat = 451;       // asm-generic/unistd.h, Linux 6.5

struct CachestatRange {  // linux/mman.h
  std::uint64_t offset = 0, length = 0;
};
struct Cachestat {
  std::uint64_t cached = 0, dirty = 0, writeback = 0, evicted = 0, recently_evicted = 0;
};

}  // namespace modelbroker
