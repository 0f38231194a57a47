#include "cuda_ipc/device_memory.h"

namespace modelbroker {

std::string_view to_string(DeviceBackend backend) noexcept {
  switch (backend) {
    case DeviceBackend::kHost:
      return "host";
    case DeviceBackend::kVmm:
      return "vmm";
    case DeviceBackend::kLegacy:
      break;
  }
  return "legacy";
}

Result<void> DeviceRange::check(std::uint64_t offset, std::size_t bytes) const {
  if (offset <= size_ && bytes <= size_ - offset) return {};
  return fail(ErrorCode::kInvalidArgument, "a copy of " + std::to_string(bytes) + " bytes at " +
                                               std::to_string(offset) + " leaves its device memory of " +
                                               std::to_string(size_));
}

Result<void> DeviceRange::copy_out(std::uint64_t offset, std::span<std::byte> into) {
  MODELBROKER_TRY(check(offset, into.size()));
  if (into.empty()) return {};
  return do_copy_out(offset, into);
}

Result<void> Allocation::copy_in(std::uint64_t offset, std::span<const std::byte> from) {
  if (is_shared_) {
    return fail(ErrorCode::kFailedPrecondition, "shared device memory cannot change any more: copy into new memory");
  }
  MODELBROKER_TRY(check(offset, from.size()));
  if (from.empty()) return {};
  return do_copy_in(offset, from);
}

Result<SharedMemory> Allocation::share() {
  is_shared_ = true;
  return do_share();
}

}  // namespace modelbroker
