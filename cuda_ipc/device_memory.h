// DeviceMemory: the memory of one device, and how processes share it.
//
// Allocation     memory as its owner holds it: filled, then shared. From then on its bytes never change.
// DeviceMapping  the same memory as a reader in another process has it.
// Pin            a range of host memory that a device copies from at full speed.
//
// Backends: `host`, memory of this host that stands in for a device; on a GPU `vmm`, shared by descriptor, and
// `legacy`, shared by a 64-byte handle. One suite, tests/unit/cuda_ipc_conformance_test.cc, holds all of them to this
// page.
//
// Lifetimes: a DeviceMemory must outlive the objects that it made. A forked child must not use its parent's. With
// `host` and `vmm`, memory is freed when its owner, all readers and all descriptors are gone. With `legacy`, its owner
// must not let go before its readers have; when the owner dies, readers keep the memory, and no other process can open
// it any more.
// Threads: one at a time for a DeviceMemory and all that it made. Failure: nothing is changed unless a
// method says so; resource_exhausted where memory or descriptors are out.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <variant>

#include "cuda_ipc/device_id.h"
#include "shm/error.h"
#include "shm/fd.h"

namespace modelbroker {

enum class DeviceBackend : std::uint8_t { kHost = 1, kVmm = 2, kLegacy = 3 };  // the numbers of labels; append only
[[nodiscard]] std::string_view to_string(DeviceBackend backend) noexcept;      // "host", "vmm", "legacy"

struct DeviceInfo {
  DeviceId id;
  std::string name;
  DeviceBackend backend;
  std::uint64_t total = 0;         // bytes
  std::uint64_t granularity = 0;   // allocations are multiples of it; a power of two, 256 or more
  bool readers_can_write = false;  // if they try to: then read-only mappings guard against accidents alone
};

// The driver's numbers, which count every process; of a host device the bytes that this owner made or adopted.
struct DeviceMemoryInfo {
  std::uint64_t total = 0, free = 0;
};

// What is sent to another process: a descriptor, or with `legacy` a handle.
using IpcHandle = std::array<std::byte, 64>;
using SharedMemory = std::variant<Fd, IpcHandle>;

// Device memory that this process has mapped.
class DeviceRange {
 public:
  virtual ~DeviceRange() = default;
  DeviceRange(const DeviceRange&) = delete;
  DeviceRange& operator=(const DeviceRange&) = delete;

  [[nodiscard]] std::uint64_t size() const noexcept { return size_; }
  // `into` holds the bytes when it returns.
  [[nodiscard]] Result<void> copy_out(std::uint64_t offset, std::span<std::byte> into);

 protected:
  explicit DeviceRange(std::uint64_t size) noexcept : size_(size) {}
  [[nodiscard]] Result<void> check(std::uint64_t offset, std::size_t bytes) const;

 private:
  virtual Result<void> do_copy_out(std::uint64_t offset, std::span<std::byte> into) = 0;

  const std::uint64_t size_;
};

class DeviceMapping : public DeviceRange {
 public:
  [[nodiscard]] std::uint64_t address() const noexcept { return address_; }  // the device's, in this process

 protected:
  DeviceMapping(std::uint64_t address, std::uint64_t size) noexcept : DeviceRange(size), address_(address) {}

 private:
  const std::uint64_t address_;
};

class Allocation : public DeviceRange {
 public:
  // Done, and `from` no longer needed, after DeviceMemory::synchronise(). failed_precondition after share().
  [[nodiscard]] Result<void> copy_in(std::uint64_t offset, std::span<const std::byte> from);
  // For one more process; each descriptor is a description of its own. Ends copy_in(), even if it fails; it may be
  // called again. REQUIRES: synchronise() after the last copy_in().
  [[nodiscard]] Result<SharedMemory> share();

 protected:
  Allocation(std::uint64_t size, bool shared) noexcept : DeviceRange(size), is_shared_(shared) {}

 private:
  virtual Result<void> do_copy_in(std::uint64_t offset, std::span<const std::byte> from) = 0;
  virtual Result<SharedMemory> do_share() = 0;

  bool is_shared_;
};

class Pin {
 public:
  virtual ~Pin() = default;
};

class DeviceMemory {
 public:
  virtual ~DeviceMemory() = default;

  [[nodiscard]] virtual const DeviceInfo& info() const noexcept = 0;
  [[nodiscard]] virtual Result<DeviceMemoryInfo> memory_info() = 0;
  // Zeroed, and rounded up to the granularity. resource_exhausted tells what is needed and free.
  [[nodiscard]] virtual Result<std::unique_ptr<Allocation>> create(std::uint64_t bytes) = 0;
  // Memory that a dead owner had shared (memory has one owner at a time); `bytes` is its whole size. unimplemented with
  // `legacy`.
  [[nodiscard]] virtual Result<std::unique_ptr<Allocation>> adopt(const SharedMemory& shared, std::uint64_t bytes) = 0;
  // To read, in another process than the owner's; `bytes` is its whole size. The mapping does not need `shared`.
  [[nodiscard]] virtual Result<std::unique_ptr<DeviceMapping>> open(const SharedMemory& shared,
                                                                    std::uint64_t bytes) = 0;
  // Host memory that will be the source of copies. They work without it, but more slowly.
  [[nodiscard]] virtual Result<std::unique_ptr<Pin>> pin(std::span<const std::byte> host) = 0;
  // Waits until all copies have ended.
  [[nodiscard]] virtual Result<void> synchronise() = 0;
};

}  // namespace modelbroker
