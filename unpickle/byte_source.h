// ByteSource: bytes at offsets, of a file or of memory.
//
// Threads: a value of one thread. Failure: a range past the end, or bytes that are not there any more, are data_loss.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "shm/error.h"

namespace modelbroker::unpickle {

class ByteSource {
 public:
  ByteSource() = default;
  ByteSource(const ByteSource&) = delete;
  ByteSource& operator=(const ByteSource&) = delete;
  virtual ~ByteSource() = default;

  [[nodiscard]] virtual std::uint64_t size() const noexcept = 0;
  // Fills `bytes` from `offset` on, or fails.
  [[nodiscard]] Result<void> read(std::uint64_t offset, std::span<std::byte> bytes) const;
  [[nodiscard]] Result<std::vector<std::byte>> read(std::uint64_t offset, std::uint64_t count) const;

 private:
  [[nodiscard]] Result<void> check(std::uint64_t offset, std::uint64_t count) const;
  [[nodiscard]] virtual Result<void> read_inside(std::uint64_t offset, std::span<std::byte> bytes) const = 0;
};

// A file by its descriptor, which the caller keeps open. The size is taken once, when it is made.
class FileSource final : public ByteSource {
 public:
  FileSource(int fd, std::uint64_t size) noexcept : fd_(fd), size_(size) {}
  [[nodiscard]] std::uint64_t size() const noexcept override { return size_; }

 private:
  [[nodiscard]] Result<void> read_inside(std::uint64_t offset, std::span<std::byte> bytes) const override;
  int fd_;
  std::uint64_t size_;
};

// Bytes that the caller keeps.
class MemorySource final : public ByteSource {
 public:
  explicit MemorySource(std::span<const std::byte> bytes) noexcept : bytes_(bytes) {}
  explicit MemorySource(std::string_view bytes) noexcept : bytes_(std::as_bytes(std::span(bytes))) {}
  [[nodiscard]] std::uint64_t size() const noexcept override { return bytes_.size(); }

 private:
  [[nodiscard]] Result<void> read_inside(std::uint64_t offset, std::span<std::byte> bytes) const override;
  std::span<const std::byte> bytes_;
};

[[nodiscard]] inline std::string_view text_of(std::span<const std::byte> bytes) noexcept {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace modelbroker::unpickle
