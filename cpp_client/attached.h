// What a Weights stands for: the mapped blocks of one attach and its lease. Threads: any.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
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

  // Decoded when it is first asked for.
  struct Contents {
    std::vector<Manifest> manifests;
    std::vector<Tensor> tensors;         // in the order of the files
    std::vector<std::uint32_t> by_name;  // indices of `tensors`, sorted
  };
  [[nodiscard]] Result<const Contents*> contents() const;

  mutable std::mutex decoding{};
  mutable std::optional<Contents> decoded{};
};

}  // namespace modelbroker
