// What events say of a model, and of a worker.
//
// Threads: the loop's only.
#pragma once

#include "broker/models/model_events.h"
#include "broker/models/store.h"
#include "broker/workers/peer.h"
#include "wire/messages.h"

namespace modelbroker {

[[nodiscard]] wire::EventData event_of(const Resident& resident);
[[nodiscard]] wire::EventData event_of(const Peer& peer);
// What model.pinned and model.unpinned say.
[[nodiscard]] wire::EventData pin_of(const Resident& resident);

}  // namespace modelbroker
