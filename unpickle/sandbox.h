// The sandbox of modelbroker-unpickle: what the process gives up before it reads the first byte of a file.
//
// Afterwards it can read, write and answer on the descriptors that it has, ask for memory, and end. Any other system
// call ends it by SIGSYS. Needs no privilege and no namespace. Threads: a process of one thread calls it once; there is
// no way back. Failure: failed_precondition where the kernel refuses the filter: read no file then.
#pragma once

#include "shm/error.h"

namespace modelbroker::unpickle {

// Sanitizers make calls of their own, and need more addresses than are given.
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define MODELBROKER_UNPICKLE_SANITIZED
#endif
#endif
#ifdef MODELBROKER_UNPICKLE_SANITIZED
inline constexpr bool kFiltered = false;
#else
inline constexpr bool kFiltered = true;
#endif

// Closes every descriptor but `file` and `answer`.
[[nodiscard]] Result<void> enter_sandbox(int file, int answer);

}  // namespace modelbroker::unpickle
