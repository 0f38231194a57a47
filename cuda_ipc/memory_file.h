// MemoryFile: memory of this host that is filled once and then sealed, so that its bytes and its size never change.
//
// A memfd: it has no name, and is freed when the last process has closed and unmapped it. Threads: one at a time.
// Failure: nothing is changed, except by seal().
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "shm/error.h"
#include "shm/fd.h"
#include "shm/mapping.h"
#include "shm/os.h"

namespace modelbroker {

class MemoryFile {
 public:
  // Zeroed, and every page exists, so that writing cannot fault. Error messages and /proc call it `name`.
  [[nodiscard]] static Result<MemoryFile> create(Os& os, std::string name, std::uint64_t size);
  // Takes over one that another process sealed. invalid_argument if it is not sealed, or does not have `size` bytes.
  [[nodiscard]] static Result<MemoryFile> adopt(Os& os, const Fd& sealed, std::string name, std::uint64_t size);
  // As a reader; the mapping does not need the descriptor. The same errors.
  [[nodiscard]] static Result<Mapping> map(Os& os, const Fd& sealed, const std::string& name, std::uint64_t size);

  // To be written to until seal() is called.
  [[nodiscard]] std::span<std::byte> bytes() const noexcept { return mapping_.bytes(); }
  // bytes() must not be written to afterwards, even if it fails. It may be called again; unavailable while another
  // process has the file mapped for writing.
  [[nodiscard]] Result<void> seal(Os& os);
  // A new read-only description, safe to send. REQUIRES: sealed.
  [[nodiscard]] Result<Fd> open_for_reader(Os& os) const;
  // Asks the kernel for a write lease; unimplemented where it has none. True before seal(): nothing was shared then.
  [[nodiscard]] Result<bool> nobody_else_has_it(Os& os) const;

 private:
  MemoryFile(std::string name, Fd fd, Mapping mapping)
      : name_(std::move(name)), fd_(std::move(fd)), mapping_(std::move(mapping)) {}

  std::string name_;
  Fd fd_;  // after seal() a read-only description of our own, the only one that the write lease does not count
  Mapping mapping_;
  bool is_sealed_ = false;
};

}  // namespace modelbroker
