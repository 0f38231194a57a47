// Where the tensors of a block stand in device memory, and which copies bring them there.
//
// In the order of the file, each at a multiple of 256 bytes, as kernels want it: this realigns a file whose tensors are
// not aligned. Tensors that overlap (views, tied ones) keep their distances and move as one. Bytes outside tensors stay
// zero, so that the memory depends on manifest and payload alone. Threads: a pure function. Failure: none.
#pragma once

#include <cstdint>
#include <vector>

#include "shm/manifest.h"

namespace modelbroker {

inline constexpr std::uint64_t kDeviceAlignment = 256;

struct CopyRun {
  std::uint64_t source = 0;  // offset in the block's payload
  std::uint64_t target = 0;  // offset in device memory
  std::uint64_t size = 0;
  friend bool operator==(const CopyRun&, const CopyRun&) = default;
};

struct DeviceLayout {
  Manifest manifest;          // as the block's, with offsets in device memory
  std::uint64_t size = 0;     // of that memory: a multiple of the granularity, and never 0
  std::vector<CopyRun> runs;  // disjoint, ascending on both sides, merged where they touch on both
};

// REQUIRES: a manifest as Manifest::decode() gives it; a granularity that is a power of two, 256 or more.
[[nodiscard]] DeviceLayout device_layout(const Manifest& manifest, std::uint64_t granularity);

}  // namespace modelbroker
