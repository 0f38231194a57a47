// Admission: who may make how many bytes in a tier, and what is evicted for it.
//
// What fits is admitted at once. Else the least valuable blocks that nobody has and that together make the room are
// evicted, and the asker waits for their memory. Where that is not enough: a refusal with numbers; an asker with a
// deadline waits in a bounded queue in the order of arrival, until shortly before it; who cannot be served yet holds up
// nobody.
// Threads: the loop's. Failure: resource_exhausted.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "broker/base/loop.h"
#include "broker/tier/block_tier.h"

namespace modelbroker {

class Admission {
 public:
  static constexpr std::size_t kMostWaiting = 256;
  struct Ask {
    std::uint64_t bytes = 0;
    std::string what;                // the file, in a refusal
    std::optional<TimePoint> until;  // how long to wait for room that nobody promises
  };
  using Then = std::function<void(Result<Budget::Reservation>)>;
  using Id = std::uint64_t;

  Admission(BlockTier& tier, Loop& loop);
  Admission(const Admission&) = delete;
  Admission& operator=(const Admission&) = delete;

  // `then` is called once, at the earliest from the loop's next turn. Who asks again in the place of an earlier ask,
  // refused or withdrawn, keeps its place in the queue.
  Id ask(Ask ask, Then then, std::optional<Id> place = std::nullopt);
  void withdraw(Id id);  // `then` is not called any more; idempotent
  // Something was freed, released, unpinned, revived or given up: looks again, in the loop's next turn.
  void look_again();
  // Evicts what is above a lower limit, as far as that goes, and the rest when it can.
  void limit_changed();

 private:
  struct Waiting {
    Id id = 0;
    Ask ask;
    Then then;
    std::optional<TimePoint> promised;  // since when room is on its way to it
    std::optional<TimerId> timer;
  };
  // What is left for those behind in the queue.
  struct Room {
    std::uint64_t available = 0;     // now
    std::uint64_t coming = 0;        // being freed
    std::uint64_t late = 0;          // should have been free by now, and may yet be
    std::uint64_t claimed = 0;       // of both, by those before
    bool can_hold_one_more = true;   // see BlockTier::Place
    bool is_full_by_others = false;  // the place has less than the budget
  };
  void look();
  void keep_limit();
  [[nodiscard]] Room room_now(const Budget::Use& use) const;
  [[nodiscard]] Error refusal(const Ask& ask) const;
  [[nodiscard]] bool promise(Waiting& waiting, Room& room);
  [[nodiscard]] std::uint64_t evict(std::uint64_t needed);
  [[nodiscard]] bool keeps_waiting(const Waiting& waiting) const;
  void set_timer(Waiting& waiting);

  BlockTier& tier_;
  Loop& loop_;
  std::vector<Waiting> queue_;  // by id
  Id next_id_ = 1;
  bool looking_ = false;
  bool above_limit_ = false, waiting_for_holders_ = false;
};

}  // namespace modelbroker
