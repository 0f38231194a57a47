// Pages of a mapped file, made before they are touched, so that a lack of memory is an error and never SIGBUS.
//
// Threads: any, on disjoint ranges. Failure: some of the range's pages may exist.
#pragma once

#include <cstddef>
#include <cstdint>

#include "shm/manifest.h"
#include "shm/os.h"

namespace modelbroker {

// Makes every page of `range` of the file `fd`, which is mapped for writing from its first byte at `mapping`. With
// `huge`, a range of 2 MiB becomes one page where the kernel can do that. Returns whether it did; ENOSPC without
// memory.
[[nodiscard]] SysResult<bool> make_pages(Os& os, int fd, std::byte* mapping, const ByteRange& range, bool huge);

}  // namespace modelbroker
