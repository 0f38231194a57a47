#include "broker/models/model_events.h"

namespace modelbroker {

wire::EventData event_of(const Resident& resident) {
  wire::EventData data;
  data.model = resident.name();
  // Subscribers are of all kinds: where a file lies that the group cannot read is not theirs to know.
  if (!resident.is_private) data.path = resident.path;
  data.block = resident.block->id();
  data.generation = resident.block->name().generation;
  data.bytes = resident.bytes();
  return data;
}

wire::EventData pin_of(const Resident& resident) {
  wire::EventData data;
  data.model = resident.name();
  data.block = resident.block->id();
  return data;
}

wire::EventData event_of(const Peer& peer) {
  wire::EventData data;
  data.uid = peer.uid;
  data.pid = static_cast<std::uint64_t>(peer.pid);
  return data;
}

}  // namespace modelbroker
