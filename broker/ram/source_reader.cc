#include "broker/ram/source_reader.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>

#include "shm/block_format.h"

namespace modelbroker {
namespace {

// Page by page alike: what a direct read demands.
bool in_step(std::span<const std::byte> into, std::uint64_t offset) {
  return reinterpret_cast<std::uintptr_t>(into.data()) % kPage == offset % kPage;
}

}  // namespace

SourceReader::SourceReader(Os& os, int fd, std::string label) : os_(os), fd_(fd), label_(std::move(label)) {
  if (!os.features().direct_io) return;
  // The path may mean another file by now; the descriptor does not.
  auto opened = os.open("/proc/self/fd/" + std::to_string(fd), O_RDONLY | O_CLOEXEC | O_DIRECT, 0);
  if (!opened) return;
  direct_ = std::move(*opened);
  direct_works_ = true;
}

bool SourceReader::cold(std::uint64_t offset, std::uint64_t size) {
  if (!direct_works_) return false;
  const auto cached = os_.cached_bytes(fd_, offset, size);
  return cached && *cached < size / 2;
}

Result<void> SourceReader::read(std::span<std::byte> into, std::uint64_t offset, bool direct) {
  if (!direct || !direct_works_ || !in_step(into, offset)) return read_buffered(into, offset);
  // Direct what fills whole pages; a shared first or last page is somebody else's too.
  const std::uint64_t head = std::min<std::uint64_t>(round_up(offset, kPage) - offset, into.size());
  const std::uint64_t middle = round_down(into.size() - head, kPage);
  const std::span<std::byte> pages = into.subspan(head, middle);
  MODELBROKER_TRY(read_buffered(into.first(head), offset));
  MODELBROKER_ASSIGN(const bool done, read_direct(pages, offset + head));
  if (!done) MODELBROKER_TRY(read_buffered(pages, offset + head));
  return read_buffered(into.subspan(head + middle), offset + head + middle);
}

Result<void> SourceReader::read_buffered(std::span<std::byte> into, std::uint64_t offset) {
  while (!into.empty()) {
    const auto got = os_.pread(fd_, into, offset);
    if (!got) return fail_errno(got.error().number, "reading '" + label_ + "'");
    if (*got == 0) {
      return fail(ErrorCode::kDataLoss, "'" + label_ +
                                            "' became shorter while it was being loaded: load it again "
                                            "when its writer has finished");
    }
    into = into.subspan(*got);
    offset += *got;
  }
  return {};
}

Result<bool> SourceReader::read_direct(std::span<std::byte> into, std::uint64_t offset) {
  while (!into.empty()) {
    const auto got = os_.pread(direct_.get(), into, offset);
    if (!got && (got.error().number == EINVAL || got.error().number == EOPNOTSUPP)) {
      direct_works_ = false;
      return false;
    }
    if (!got) return fail_errno(got.error().number, "reading '" + label_ + "'");
    // A part of a page: the file's end, or a file system's whim. The rest goes the other way.
    const std::uint64_t whole = round_down(*got, kPage);
    if (whole == 0) {
      MODELBROKER_TRY(read_buffered(into, offset));
      return true;
    }
    into = into.subspan(whole);
    offset += whole;
  }
  return true;
}

}  // namespace modelbroker
