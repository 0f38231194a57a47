// EventSocket: what happens in the broker, published to every subscriber; docs/protocol.md, "Events".
//
// Each event of this boot has the next number, from 1. Whoever misses one sees a gap and asks for a
// snapshot: nothing here waits for anybody, and what a slow subscriber may keep waiting is bounded.
// Threads: the loop's only.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "broker/base/event_sink.h"
#include "shm/error.h"
#include "wire/messages.h"

namespace modelbroker {

class EventSocket final : public EventSink {
 public:
  // Binds; the caller holds the run directory's lock (a second bind would steal the path).
  [[nodiscard]] static Result<std::unique_ptr<EventSocket>> bind(const std::string& endpoint, std::string boot_id);
  ~EventSocket() override;  // what was just published still leaves
  // Binds, also once more when the socket's file was removed: see Router::listen().
  [[nodiscard]] Result<void> listen();
  EventSocket(const EventSocket&) = delete;
  EventSocket& operator=(const EventSocket&) = delete;

  // A slow subscriber misses events and sees a gap in seq.
  void publish(std::string_view type, const wire::EventData& data) override;
  void take_subscriptions() override;
  [[nodiscard]] std::uint64_t last_seq() const noexcept override { return seq_; }

 private:
  struct Socket;
  EventSocket(std::string endpoint, std::string boot_id);
  const std::string endpoint_;
  std::string boot_id_;
  std::unique_ptr<Socket> socket_;
  std::uint64_t seq_ = 0;
};

}  // namespace modelbroker
