// What events and replies say of a model's blocks, and events of a model, of a block that no model has any more, and of
// a worker.
//
// Threads: the loop's only.
#pragma once

#include <vector>

#include "broker/models/registry.h"
#include "broker/ram/block_events.h"
#include "broker/workers/peer.h"
#include "wire/messages.h"

namespace modelbroker {

// `shown`: who is told may know where the source files lie.
[[nodiscard]] std::vector<wire::ModelBlock> blocks_of(const ModelEntry& model, bool shown);
[[nodiscard]] wire::EventData event_of(const ModelEntry& model);
[[nodiscard]] wire::EventData event_of(const Peer& peer);
// What model.pinned and model.unpinned say.
[[nodiscard]] wire::EventData pin_of(const ModelEntry& model);

}  // namespace modelbroker
