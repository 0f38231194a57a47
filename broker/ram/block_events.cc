#include "broker/ram/block_events.h"

#include <string>

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

wire::EventData event_of(const RamBlock& block) {
  wire::EventData data;
  data.model = block.block->manifest().name;
  if (!block.is_private) data.path = block.path();
  data.block = block.id();
  data.generation = block.generation();
  data.bytes = block.bytes();
  return data;
}

}  // namespace modelbroker
