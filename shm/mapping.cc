#include "shm/mapping.h"

#include <sys/mman.h>

#include "shm/block_format.h"

namespace modelbroker {
namespace {

namespace ipc = boost::interprocess;

constexpr std::size_t kUnmapStep = std::size_t{16} << 20;

// What mapped_region asks of a file.
class DescriptorMapping {
 public:
  DescriptorMapping(int fd, ipc::mode_t mode) : fd_(fd), mode_(mode) {}
  [[nodiscard]] ipc::mapping_handle_t get_mapping_handle() const {
    return ipc::ipcdetail::mapping_handle_from_file_handle(fd_);
  }
  [[nodiscard]] ipc::mode_t get_mode() const { return mode_; }

 private:
  int fd_;
  ipc::mode_t mode_;
};

ipc::mode_t mode_of(Mapping::Kind kind) {
  switch (kind) {
    case Mapping::Kind::kShared:
      return ipc::read_write;
    case Mapping::Kind::kReadOnly:
      return ipc::read_only;
    case Mapping::Kind::kPrivate:
      break;
  }
  return ipc::copy_on_write;
}

}  // namespace

Result<Mapping> Mapping::map(Os& os, int fd, std::uint64_t size, Kind kind) {
  const auto area = os.reserve(size, kHugePage);
  if (!area) return fail_errno(area.error().number, "reserving " + std::to_string(size) + " bytes of address space");
  try {
    const ipc::mode_t mode = mode_of(kind);
    // Not charged in full to the commit limit: few pages of a private mapping are ever copied.
    const int options = MAP_FIXED | (kind == Kind::kPrivate ? MAP_NORESERVE : 0);
    Mapping mapping;
    ipc::mapped_region region(DescriptorMapping(fd, mode), mode, 0, size, *area, options);
    mapping.region_.swap(region);
    // Core dumps of a worker do not carry the weights.
    (void)os.advise(*area, size, MADV_DONTDUMP);
    return mapping;
  } catch (const ipc::interprocess_exception& error) {
    os.unreserve(*area, size);
    return fail_errno(error.get_native_error(), "mapping a block of " + std::to_string(size) + " bytes");
  }
}

Mapping::~Mapping() {
  while (region_.get_size() > kUnmapStep && region_.shrink_by(kUnmapStep)) {
  }
}

}  // namespace modelbroker
