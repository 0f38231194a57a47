// EventSink: where rooms say what has happened; a door publishes it.
//
// Threads: the loop's only.
#pragma once

#include <string_view>

#include "wire/messages.h"

namespace modelbroker {

class EventSink {
 public:
  virtual ~EventSink() = default;
  // `type` is one of wire::kEventTypes. Never waits and never fails.
  virtual void publish(std::string_view type, const wire::EventData& data) = 0;

 protected:
  EventSink() = default;
  EventSink(const EventSink&) = default;
  EventSink& operator=(const EventSink&) = default;
};

}  // namespace modelbroker
