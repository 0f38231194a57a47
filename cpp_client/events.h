// EventStream: what a broker publishes, in order; where something was missed, the state in its place.
//
// It begins with a snapshot, and gives another one when events were missed or another broker answers:
// then go on from there. It waits for a broker that is being restarted.
// Threads: one thread at a time. Failure: next() gives an error only where waiting would not help.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <variant>

#include "cpp_client/connection.h"

namespace modelbroker::client {

class EventStream {
 public:
  enum class Why : std::uint8_t { kStart, kGap, kRestart };
  struct Snapshot {
    Why why = Why::kStart;
    wire::EventsSnapshotReply state;
  };
  using Item = std::variant<Snapshot, wire::Event>;

  // unavailable if no broker answers within the options' timeout. After `deadline` no answer is waited for any more.
  [[nodiscard]] static Result<EventStream> open(Os& os, const ConnectOptions& options,
                                                const Deadline& deadline = Deadline(Timeout{0}));
  EventStream(EventStream&&) noexcept;
  EventStream& operator=(EventStream&&) noexcept;
  ~EventStream();

  // The next one; nothing when `timeout` has passed (zero: never) or `wake` (a descriptor) became readable.
  [[nodiscard]] Result<std::optional<Item>> next(Timeout timeout, int wake = -1);

 private:
  struct State;
  explicit EventStream(std::unique_ptr<State> state) noexcept;
  std::unique_ptr<State> state_;
};

[[nodiscard]] std::string_view to_string(EventStream::Why why) noexcept;  // "start", "gap", "restart"

}  // namespace modelbroker::client
