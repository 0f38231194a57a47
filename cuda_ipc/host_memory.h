// Memory of this host as a device, for hosts without a GPU: `host:N`. Never called a GPU.
//
// Allocations are memory files in 2 MiB pages, sealed when they are shared, so that no reader can write, not even one
// that tries to. Memory whose owner let go of it counts as used until the kernel's write lease says that no reader has
// it, as a driver would count it; where the kernel has no such lease, until its owner lets go.
#pragma once

#include <cstdint>
#include <memory>

#include "cuda_ipc/device_memory.h"
#include "shm/os.h"

namespace modelbroker {

// A device of `total` bytes; takes no memory by itself. `os` outlives it. REQUIRES: id.is_host().
[[nodiscard]] std::unique_ptr<DeviceMemory> make_host_memory(Os& os, DeviceId id, std::uint64_t total);

}  // namespace modelbroker
