// ChunkHasher: XXH3-64 of a chunk that arrives in pieces. Threads: one at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace modelbroker {

class ChunkHasher {
 public:
  ChunkHasher();
  void reset() noexcept;
  void update(std::span<const std::byte> bytes) noexcept;
  [[nodiscard]] std::uint64_t digest() const noexcept;

 private:
  std::unique_ptr<void, void (*)(void*)> state_;
};

}  // namespace modelbroker
