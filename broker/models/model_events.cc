#include "broker/models/model_events.h"

namespace modelbroker {

std::vector<wire::ModelBlock> blocks_of(const ModelEntry& model, bool shown) {
  std::vector<wire::ModelBlock> blocks;
  for (const RamBlock* const part : model.parts) blocks.push_back(block_of(*part, shown));
  return blocks;
}

wire::EventData event_of(const ModelEntry& model) {
  wire::EventData data = pin_of(model);
  // Subscribers are of all kinds: where a file lies that the group cannot read is not theirs to know.
  if (!model.is_private()) data.path = model.path;
  data.generation = model.generation();
  data.bytes = model.bytes();
  return data;
}

wire::EventData pin_of(const ModelEntry& model) {
  wire::EventData data;
  data.model = model.name();
  if (model.parts.size() == 1) data.block = model.parts.front()->id();
  data.blocks = blocks_of(model, !model.is_private());
  return data;
}

wire::EventData event_of(const Peer& peer) {
  wire::EventData data;
  data.uid = peer.uid;
  data.pid = static_cast<std::uint64_t>(peer.pid);
  return data;
}

}  // namespace modelbroker
