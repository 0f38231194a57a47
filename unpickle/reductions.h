// What a pickle's calls of allowed names become: values. The only place that gives a name a meaning.
//
// Threads: one, as the heap. Failure: invalid_argument for what may not be called, data_loss for arguments that the
// name cannot have.
#pragma once

#include <span>

#include "shm/error.h"
#include "unpickle/heap.h"

namespace modelbroker::unpickle {

// The value that calling `callable` with these arguments stands for.
[[nodiscard]] Result<Id> reduce(Heap& heap, Id callable, std::span<const Id> arguments);
// What BUILD does: gives an object its attributes.
[[nodiscard]] Result<void> set_state(Heap& heap, Id object, Id state);

}  // namespace modelbroker::unpickle
