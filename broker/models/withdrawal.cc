#include "broker/models/withdrawal.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "broker/base/log.h"
#include "broker/base/sizes.h"
#include "broker/models/model_events.h"

namespace modelbroker {

bool Withdrawal::nobody_has(const ModelEntry& model) const {
  return std::ranges::all_of(model.its_alone(), [this](const RamBlock* block) { return reaper_.nobody_has(*block); });
}

// The blocks are renamed first: a broker that dies in between leaves blocks that drain, and names of files.
Result<void> Withdrawal::withdraw(ModelEntry& model, Why why, const wire::EventData& event,
                                  std::function<void(bool)> freed) {
  std::vector<RamBlock*> going;
  const std::vector<RamBlock*> blocks = model.its_alone();
  for (RamBlock* const block : blocks) {
    auto withdrawn = reaper_.withdraw(*block);
    if (withdrawn) {
      going.push_back(block);
    } else if (going.empty()) {
      return withdrawn;
    }  // else the reaper tries again: no model has it then
  }
  const wire::EventData data = event_of(model);  // while it has its name
  models_.apply({.why = why, .edits = {{.id = model.id, .without = model.names}}, .told = {}, .event = event});
  struct Waiting {
    std::size_t blocks;
    bool all_freed;
    std::function<void(bool)> freed;
  };
  const auto waiting =
      std::make_shared<Waiting>(Waiting{going.size(), going.size() == blocks.size(), std::move(freed)});
  const auto one_freed = [waiting](bool is_freed) {
    waiting->all_freed = waiting->all_freed && is_freed;
    if (--waiting->blocks == 0 && waiting->freed) waiting->freed(waiting->all_freed);
  };
  std::size_t held = 0;
  for (RamBlock* const block : going) {
    if (!reaper_.free(*block, one_freed)) ++held;
  }
  if (held > 0) events_.publish("model.draining", data);
  for (std::size_t i = 0; i < held; ++i) one_freed(false);
  if (going.empty() && waiting->freed) waiting->freed(true);  // others have all of it
  return {};
}

Result<void> Withdrawal::unload(ModelEntry& model, std::function<void(bool)> freed) {
  return withdraw(model, Why::kUnloaded, {}, std::move(freed));
}

bool Withdrawal::evict(ModelEntry& model, const std::string& reason) {
  const std::string id = model.id;
  const std::uint64_t bytes = model.bytes();
  const double value = model.value;
  wire::EventData event;
  event.reason = reason;
  if (!withdraw(model, Why::kEvicted, event, {})) return false;
  models_.age(value);
  ++env_.counters.evictions;
  log_info("evicting " + id + " (" + format_size(bytes) + "): " + reason);
  return true;
}

void Withdrawal::damaged(RamBlock& block, const wire::EventData& found) {
  block.damaged = true;
  for (const ModelEntry* const model : models_.with_block(block)) {
    const std::vector<RamBlock*> parts = model->parts;
    models_.apply(
        {.why = Why::kDamaged, .edits = {{.id = model->id, .without = model->names}}, .told = {}, .event = found});
    for (RamBlock* const part : parts) part->is_spare = part != &block && part->models == 0;
  }
  reaper_.drain(block);
}

}  // namespace modelbroker
