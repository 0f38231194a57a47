// Mapping: a whole file mapped at a 2 MiB-aligned address, where huge pages can be seen as such.
//
// Boost.Interprocess maps; the descriptor is ours (its own file_mapping would open a second description,
// and our write-lease test would see it). Threads: one at a time. Failure: nothing stays mapped.
#pragma once

#include <boost/interprocess/mapped_region.hpp>
#include <cstddef>
#include <cstdint>
#include <span>

#include "shm/error.h"
#include "shm/os.h"

namespace modelbroker {

class Mapping {
 public:
  enum class Kind : std::uint8_t { kShared, kReadOnly, kPrivate };

  [[nodiscard]] static Result<Mapping> map(Os& os, int fd, std::uint64_t size, Kind kind);
  Mapping() = default;
  Mapping(Mapping&& other) noexcept { region_.swap(other.region_); }
  Mapping& operator=(Mapping&& other) noexcept {
    Mapping old;
    old.region_.swap(region_);
    region_.swap(other.region_);
    return *this;
  }
  // In small steps: one munmap of gigabytes of 4 KiB pages holds the address space's lock too long.
  ~Mapping();

  [[nodiscard]] std::span<std::byte> bytes() const noexcept {
    return {static_cast<std::byte*>(region_.get_address()), region_.get_size()};
  }

 private:
  boost::interprocess::mapped_region region_;
};

}  // namespace modelbroker
