// SourceReader: bytes of a file into memory, through the page cache or past it.
//
// A range that the page cache mostly holds is read through it; one that it does not is read with
// O_DIRECT, which leaves the cache to others and costs no copy. `into` must lie in its page as the
// range lies in the file (a block's phase sees to that); what has no whole pages is read buffered.
// Threads: any number may read at once. Failure: data_loss where the file ends early.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "shm/error.h"
#include "shm/fd.h"
#include "shm/os.h"

namespace modelbroker {

class SourceReader {
 public:
  // `fd` must stay open; `label` names the file in messages.
  SourceReader(Os& os, int fd, std::string label);

  // Whether most of the range would have to come from the disk.
  [[nodiscard]] bool cold(std::uint64_t offset, std::uint64_t size);
  [[nodiscard]] Result<void> read(std::span<std::byte> into, std::uint64_t offset, bool direct);

 private:
  [[nodiscard]] Result<void> read_buffered(std::span<std::byte> into, std::uint64_t offset);
  // False where this file system has no direct reads after all.
  [[nodiscard]] Result<bool> read_direct(std::span<std::byte> into, std::uint64_t offset);

  Os& os_;
  int fd_;
  std::string label_;
  Fd direct_;  // a description of its own: O_DIRECT belongs to the description
  std::atomic<bool> direct_works_{false};
};

}  // namespace modelbroker
