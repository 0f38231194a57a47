// Events: what happens in the broker, published to whoever listens; docs/protocol.md, "Events".
//
// Each event of this boot has the next number, from 1. Whoever misses one sees a gap and asks for a
// snapshot: nothing here waits for anybody, and what a slow subscriber may keep waiting is bounded.
// Threads: the loop's only.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "broker/ram/store.h"
#include "broker/workers/sessions.h"
#include "shm/error.h"
#include "wire/messages.h"

namespace modelbroker {

class Events {
 public:
  // Binds; the caller holds the run directory's lock (a second bind would steal the path).
  [[nodiscard]] static Result<std::unique_ptr<Events>> bind(const std::string& endpoint, std::string boot_id);
  ~Events();  // what was just published still leaves
  // Binds, also once more when the socket's file was removed: see Router::listen().
  [[nodiscard]] Result<void> listen();
  Events(const Events&) = delete;
  Events& operator=(const Events&) = delete;

  // `type` is one of wire::kEventTypes. Never waits; a slow subscriber misses events and sees a gap in seq.
  void publish(std::string_view type, const wire::EventData& data);
  // Takes in the subscriptions that have arrived: before a snapshot, after which a subscriber wants all.
  void take_subscriptions();
  [[nodiscard]] std::uint64_t last_seq() const noexcept { return seq_; }

 private:
  struct Socket;
  Events(std::string endpoint, std::string boot_id);
  const std::string endpoint_;
  std::string boot_id_;
  std::unique_ptr<Socket> socket_;
  std::uint64_t seq_ = 0;
};

// What events say of a model, and of a worker.
[[nodiscard]] wire::EventData event_of(const Resident& resident);
[[nodiscard]] wire::EventData event_of(const Peer& peer);
// What model.pinned and model.unpinned say.
[[nodiscard]] wire::EventData pin_of(const Resident& resident);

}  // namespace modelbroker
