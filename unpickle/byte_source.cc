#include "unpickle/byte_source.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

namespace modelbroker::unpickle {

Result<void> ByteSource::check(std::uint64_t offset, std::uint64_t count) const {
  if (offset <= size() && count <= size() - offset) return {};
  return fail(ErrorCode::kDataLoss, "the file ends at byte " + std::to_string(size()) + "; " + std::to_string(count) +
                                        " bytes at " + std::to_string(offset) + " are missing");
}

Result<void> ByteSource::read(std::uint64_t offset, std::span<std::byte> bytes) const {
  MODELBROKER_TRY(check(offset, bytes.size()));
  return read_inside(offset, bytes);
}

Result<std::vector<std::byte>> ByteSource::read(std::uint64_t offset, std::uint64_t count) const {
  MODELBROKER_TRY(check(offset, count));
  std::vector<std::byte> bytes(static_cast<std::size_t>(count));
  MODELBROKER_TRY(read_inside(offset, bytes));
  return bytes;
}

Result<void> FileSource::read_inside(std::uint64_t offset, std::span<std::byte> bytes) const {
  while (!bytes.empty()) {
    const ssize_t got = ::pread(fd_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_errno(errno, "reading the file");
    if (got == 0) return fail(ErrorCode::kDataLoss, "the file became shorter while it was read");
    bytes = bytes.subspan(static_cast<std::size_t>(got));
    offset += static_cast<std::uint64_t>(got);
  }
  return {};
}

Result<void> MemorySource::read_inside(std::uint64_t offset, std::span<std::byte> bytes) const {
  if (!bytes.empty()) std::memcpy(bytes.data(), bytes_.data() + offset, bytes.size());
  return {};
}

}  // namespace modelbroker::unpickle
