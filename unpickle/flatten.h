// From a pickle's value to tensors with names, and plain values as JSON.
//
// Names of nested dictionaries and sequences are joined by dots. A single outer level that holds all tensors and is
// named as trainers name it is taken off. What trainers keep beside the weights is left out and counted.
// Threads: one. Failure: the error names the tensor; memory is bounded by bounds.h.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "shm/error.h"
#include "unpickle/heap.h"
#include "unpickle/tensors.h"

namespace modelbroker::unpickle {

struct NamedTensor {
  std::string name;
  const TorchDtype* dtype = nullptr;
  std::string_view storage;  // its key
  std::uint64_t storage_bytes = 0;
  Placement placement;  // in the storage
};

struct Flattened {
  std::vector<NamedTensor> tensors;  // in the order of the pickle
  std::string wrapper;               // the outer level that was taken off; empty: none
  std::string values;                // a JSON object
  bool values_left_out = false;      // there were more than are kept
  std::uint64_t left_out = 0;        // tensors of optimizers and unknown objects
};

[[nodiscard]] Result<Flattened> flatten(const Heap& heap, Id root);
// Whether an entry of a checkpoint belongs to its trainer and not to the weights.
[[nodiscard]] bool of_trainer(const Heap& heap, Id key, Id value) noexcept;

// plain_values.cc: the plain values below `root`, as a JSON object; empty where there are more than are kept.
[[nodiscard]] std::string plain_values(const Heap& heap, Id root);

}  // namespace modelbroker::unpickle
