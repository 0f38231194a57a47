#include "cuda_ipc/memory_file.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "shm/block_format.h"
#include "shm/pages.h"

namespace modelbroker {
namespace {

// F_SEAL_WRITE, not F_SEAL_FUTURE_WRITE: it also proves that no process still has the file mapped for writing.
constexpr int kSeals = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;

Result<Fd> reopen(Os& os, int fd, const std::string& name) {
  auto reader = os.open("/proc/self/fd/" + std::to_string(fd), O_RDONLY | O_CLOEXEC, 0);
  if (!reader) return fail_errno(reader.error().number, "opening " + name + " again");
  return std::move(*reader);
}

Result<void> check_sealed(Os& os, int fd, const std::string& name, std::uint64_t size) {
  const auto seals = os.seals_of(fd);
  if (!seals && seals.error().number != EINVAL) return fail_errno(seals.error().number, "looking at " + name);
  if (!seals || (*seals & kSeals) != kSeals) {
    return fail(ErrorCode::kInvalidArgument, name + ": the descriptor is not one of sealed memory");
  }
  const auto found = os.fstat(fd);
  if (!found) return fail_errno(found.error().number, "looking at " + name);
  if (static_cast<std::uint64_t>(found->st_size) == size) return {};
  return fail(ErrorCode::kInvalidArgument,
              name + " has " + std::to_string(found->st_size) + " bytes, not " + std::to_string(size));
}

}  // namespace

Result<MemoryFile> MemoryFile::create(Os& os, std::string name, std::uint64_t size) {
  auto fd = os.memory_file(name);
  if (!fd) return fail_errno(fd.error().number, "making " + name);
  if (auto sized = os.ftruncate(fd->get(), size); !sized) return fail_errno(sized.error().number, "sizing " + name);
  MODELBROKER_ASSIGN(Mapping mapping, Mapping::map(os, fd->get(), size, Mapping::Kind::kShared));
  // With the mapping in a forked child the file could not be sealed.
  if (auto kept = os.advise(mapping.bytes().data(), size, MADV_DONTFORK); !kept) {
    return fail_errno(kept.error().number, "keeping " + name + " from forks");
  }
  for (ByteRange step{0, 0}; step.end() < size;) {
    step = {step.end(), std::min(kHugePage, size - step.end())};
    const auto made = make_pages(os, fd->get(), mapping.bytes().data(), step, step.size == kHugePage);
    if (!made) return fail_errno(made.error().number, "making pages for " + name);
  }
  return MemoryFile(std::move(name), std::move(*fd), std::move(mapping));
}

Result<MemoryFile> MemoryFile::adopt(Os& os, const Fd& sealed, std::string name, std::uint64_t size) {
  MODELBROKER_TRY(check_sealed(os, sealed.get(), name, size));
  MODELBROKER_ASSIGN(Fd own, reopen(os, sealed.get(), name));
  MODELBROKER_ASSIGN(Mapping mapping, Mapping::map(os, own.get(), size, Mapping::Kind::kReadOnly));
  MemoryFile file(std::move(name), std::move(own), std::move(mapping));
  file.is_sealed_ = true;
  return file;
}

Result<Mapping> MemoryFile::map(Os& os, const Fd& sealed, const std::string& name, std::uint64_t size) {
  MODELBROKER_TRY(check_sealed(os, sealed.get(), name, size));
  return Mapping::map(os, sealed.get(), size, Mapping::Kind::kReadOnly);
}

Result<void> MemoryFile::seal(Os& os) {
  if (is_sealed_) return {};
  MODELBROKER_ASSIGN(Fd reader, reopen(os, fd_.get(), name_));
  MODELBROKER_ASSIGN(mapping_, Mapping::map(os, reader.get(), bytes().size(), Mapping::Kind::kReadOnly));
  if (auto sealed = os.add_seals(fd_.get(), kSeals); !sealed) {
    return fail_errno(sealed.error().number, "sealing " + name_);
  }
  fd_ = std::move(reader);
  is_sealed_ = true;
  return {};
}

Result<Fd> MemoryFile::open_for_reader(Os& os) const { return reopen(os, fd_.get(), name_); }

Result<bool> MemoryFile::nobody_else_has_it(Os& os) const {
  if (!is_sealed_) return true;
  const auto alone = os.nobody_else_has_it(fd_.get());
  if (!alone) return fail_errno(alone.error().number, "asking who has " + name_);
  return *alone;
}

}  // namespace modelbroker
