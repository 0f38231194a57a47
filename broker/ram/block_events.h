// What events and replies say of a block. Threads: the loop's only.
#pragma once

#include "broker/ram/ram_blocks.h"
#include "wire/messages.h"

namespace modelbroker {

// `shown`: who is told may know where its source file lies.
[[nodiscard]] wire::ModelBlock block_of(const RamBlock& block, bool shown);
[[nodiscard]] wire::EventData event_of(const RamBlock& block);

}  // namespace modelbroker
