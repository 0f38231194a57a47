#include "broker/models/books.h"

#include <set>

namespace modelbroker {

// A block counts once whatever its models: as pinned if one of them is, as evictable if all of them are.
Budget::Use Books::use() const {
  const RamBlocks::Totals totals = blocks.totals();
  Budget::Use use{
      .made = totals.made, .draining = totals.draining, .removing = totals.removing, .foreign = foreign.bytes};
  std::set<const RamBlock*> pinned, kept;
  for (const auto& [id, model] : models.all()) {
    if (model.pinned) pinned.insert(model.parts.begin(), model.parts.end());
    if (!evictable(model)) kept.insert(model.parts.begin(), model.parts.end());
  }
  for (const RamBlock* const block : pinned) use.pinned += block->bytes();
  for (const auto& [id, block] : blocks.all()) {
    if (leases.count(id) > 0) use.leased += block.bytes();
    if (block.models > 0 && !kept.contains(&block)) use.evictable += block.bytes();
  }
  return use;
}

}  // namespace modelbroker
