// Label: a sealed memory file that says what a device block holds; docs/block-format.md.
//
// After a death it tells which model's bytes some device memory holds. Threads: a value. Failure: decode() and read()
// refuse what is damaged or contradicts itself as data_loss, and what a later version wrote as unimplemented: such a
// block stays. They read nothing outside the label, and their memory is bounded.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "cuda_ipc/device_memory.h"
#include "shm/block_format.h"
#include "shm/manifest.h"
#include "shm/os.h"

namespace modelbroker {

inline constexpr std::uint64_t kLabelHeader = 256;
inline constexpr std::uint16_t kLabelVersion = 1;

struct Label {
  DeviceId device;
  DeviceBackend backend;
  std::uint64_t memory_size = 0;      // of the allocation
  std::uint64_t generation = 0;       // the device block's own
  Digest digest{};                    // of the RAM block that was copied
  std::optional<IpcHandle> handle{};  // with `legacy`, and only then
  Manifest manifest{};                // as the RAM block's, with offsets in device memory
  friend bool operator==(const Label&, const Label&) = default;

  [[nodiscard]] std::vector<std::byte> encode() const;
  [[nodiscard]] static Result<Label> decode(std::span<const std::byte> bytes);

  // Into a new sealed memory file; returns a read-only descriptor.
  [[nodiscard]] Result<Fd> write(Os& os) const;
  // Also invalid_argument: the file is not sealed memory.
  [[nodiscard]] static Result<Label> read(Os& os, const Fd& sealed);
};

}  // namespace modelbroker
