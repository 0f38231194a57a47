// EventSink: where rooms say what has happened; a door publishes it.
//
// Threads: the loop's only.
#pragma once

#include <cstdint>
#include <string_view>

#include "wire/messages.h"

namespace modelbroker {

class EventSink {
 public:
  virtual ~EventSink() = default;
  // `type` is one of wire::kEventTypes. Never waits and never fails.
  virtual void publish(std::string_view type, const wire::EventData& data) = 0;
  // Takes in the subscriptions that have arrived: before a snapshot, after which a subscriber wants all.
  virtual void take_subscriptions() = 0;
  // The number of the last event; 0 before the first.
  [[nodiscard]] virtual std::uint64_t last_seq() const noexcept = 0;

 protected:
  EventSink() = default;
  EventSink(const EventSink&) = default;
  EventSink& operator=(const EventSink&) = default;
};

}  // namespace modelbroker
