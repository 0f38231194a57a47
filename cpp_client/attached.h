// What a Weights stands for: the mapped blocks of one attach and its lease. Threads: any.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cpp_client/weights.h"
#include "shm/block.h"

namespace modelbroker {

struct Weights::Attached {
  std::string model;
  std::uint64_t generation = 0;
  Mode mode = Mode::kPrivate;
  std::string page_kind;
  std::shared_ptr<const void> lease;  // ends last: what it guards is below, and goes first
  std::vector<BlockView> views;       // one a source file; later names win

  struct Contents {
    std::vector<Manifest> manifests;
    std::vector<Tensor> tensors;         // in the order of the files
    std::vector<std::uint32_t> by_name;  // indices of `tensors`, sorted
  };
  // Decoded when it is first asked for. Without a lock: another thread could have it in a forked child, for ever.
  // Two at once may both decode; the first to be done is what all get.
  [[nodiscard]] Result<const Contents*> contents() const;

  mutable std::atomic<const Contents*> decoded{nullptr};

  Attached() = default;
  Attached(const Attached&) = delete;
  Attached& operator=(const Attached&) = delete;
  ~Attached() { delete decoded.load(); }
};

}  // namespace modelbroker
