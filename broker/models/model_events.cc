#include "broker/models/model_events.h"

namespace modelbroker {

wire::ModelBlock block_of(const RamBlock& block, bool shown) {
  return {.block = block.id(),
          .path = block.block->path(),
          .source = shown ? block.path() : "",
          .generation = block.generation(),
          .bytes = block.bytes(),
          .payload_bytes = block.payload_bytes(),
          .page_kind = std::string(to_string(block.block->page_kind()))};
}

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

wire::EventData event_of(const RamBlock& block) {
  wire::EventData data;
  data.model = block.block->manifest().name;
  if (!block.is_private) data.path = block.path();
  data.block = block.id();
  data.generation = block.generation();
  data.bytes = block.bytes();
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
