// Withdrawal: the end of a model: its names go, and the blocks that no other model has drain.
//
// Threads: the loop's. Failure: the file of a block cannot be renamed; then nothing has changed.
#pragma once

#include <functional>

#include "broker/base/environment.h"
#include "broker/base/event_sink.h"
#include "broker/models/registry.h"
#include "broker/ram/reaper.h"

namespace modelbroker {

class Withdrawal {
 public:
  Withdrawal(Environment& env, Registry& models, Reaper& reaper, EventSink& events)
      : env_(env), models_(models), reaper_(reaper), events_(events) {}

  // `freed` is told once: whether all that it alone had is free by now.
  Result<void> unload(ModelEntry& model, std::function<void(bool freed)> freed);
  // A model that nobody_has(), to make room; its names are remembered. False if it has to stay.
  [[nodiscard]] bool evict(ModelEntry& model, const std::string& reason);
  // Whether what it alone has is nobody's, by our leases and by the kernel's word.
  [[nodiscard]] bool nobody_has(const ModelEntry& model) const;
  // Withdraws every model that has this block, of which the bytes are not what was loaded: their names are remembered,
  // and their other blocks kept for the next load. `found` says what is wrong, for the event.
  void damaged(RamBlock& block, const wire::EventData& found);

 private:
  Result<void> withdraw(ModelEntry& model, Why why, const wire::EventData& event,
                        std::function<void(bool freed)> freed);

  Environment& env_;
  Registry& models_;
  Reaper& reaper_;
  EventSink& events_;
};

}  // namespace modelbroker
