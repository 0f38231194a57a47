// Storages and tensors of a pickle: from arguments to numbers that hold together.
//
// Threads: one, as the heap. Failure: data_loss for arguments that torch never writes. What a tensor has that we cannot
// hold is kept with it (Tensor::refusal) and told when its name is known.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "shm/error.h"
#include "unpickle/heap.h"

namespace modelbroker::unpickle {

// ("storage", class, key, location, count), as torch.save writes them; a sixth one of the legacy form is None.
[[nodiscard]] Result<Storage> storage_of_persistent_id(const Heap& heap, Id id);
[[nodiscard]] Result<Id> make_tensor(Heap& heap, const Value& name, std::span<const Id> arguments);
[[nodiscard]] Result<Id> make_refused_tensor(Heap& heap, const Value& name);

// Where a tensor lies in its storage, in bytes; shape and strides in elements of the manifest's dtype.
struct Placement {
  std::vector<std::uint64_t> shape;
  std::vector<std::uint64_t> strides;  // empty: row-major
  std::uint64_t offset = 0;
  std::uint64_t size = 0;
};
[[nodiscard]] Result<Placement> place(const Tensor& tensor, const Storage& storage);

}  // namespace modelbroker::unpickle
