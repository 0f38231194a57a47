#include "shm/pages.h"

#include <sys/mman.h>

#include <cerrno>

#include "shm/block_format.h"
#include "shm/kernel.h"

namespace modelbroker {
namespace {

// Makes them as small ones.
SysResult<void> make_small_pages(Os& os, int fd, std::byte* address, const ByteRange& range) {
  if (os.features().populate_write) return os.advise(address, range.size, kMadvPopulateWrite);
  return os.fallocate(fd, range.offset, range.size);
}

}  // namespace

SysResult<bool> make_pages(Os& os, int fd, std::byte* mapping, const ByteRange& range, bool huge) {
  std::byte* const address = mapping + range.offset;
  SysResult<void> made;
  if (huge && os.features().collapse) {
    // Collapse wants a page to begin with, and says EFAULT here where a touch would be SIGBUS.
    made = os.advise(address, kPage, kMadvPopulateWrite);
    if (made && os.advise(address, range.size, kMadvCollapse)) return true;
  }
  if (made) made = make_small_pages(os, fd, address, range);
  if (made) return false;
  return tl::unexpected(Errno{made.error().number == EFAULT ? ENOSPC : made.error().number});
}

}  // namespace modelbroker
