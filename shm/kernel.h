// Kernel numbers that Debian 12's headers lack, each from the kernel's own uapi headers.
#pragma once

#include <cstdint>

namespace modelbroker {

inline constexpr int kMadvPopulateWrite = 23;    // asm-generic/mman-common.h, Linux 5.14
inline constexpr int kMadvCollapse = 25;         // Linux 6.1
inline constexpr unsigned kRenameNoReplace = 1;  // linux/fs.h
inline constexpr unsigned kMfdNoExecSeal = 8;    // linux/memfd.h, Linux 6.3
inline constexpr int kSoPeerPidfd = 77;          // asm-generic/socket.h, Linux 6.5
inline constexpr long kSysCachestat = 451;       // asm-generic/unistd.h, Linux 6.5

inline constexpr int kSoPeerGroups = 59;                                             // asm-generic/socket.h, Linux 4.13
inline constexpr long kSysOpenat2 = 437;                                             // asm-generic/unistd.h, Linux 5.6
inline constexpr std::uint64_t kResolveNoMagicLinks = 0x02, kResolveBeneath = 0x08;  // linux/openat2.h

struct OpenHow {
  std::uint64_t flags = 0, mode = 0, resolve = 0;
};
struct CachestatRange {  // linux/mman.h
  std::uint64_t offset = 0, length = 0;
};
struct Cachestat {
  std::uint64_t cached = 0, dirty = 0, writeback = 0, evicted = 0, recently_evicted = 0;
};

}  // namespace modelbroker
