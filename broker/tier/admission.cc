#include "broker/tier/admission.h"

#include <algorithm>
#include <utility>

namespace modelbroker {
namespace {

// Room that is being freed comes within milliseconds, but for a cancelled load whose read hangs: what can be evicted is
// when it is late, and who has no other hope waits somewhat longer.
constexpr std::chrono::seconds kLate{1}, kPromise{10};
// The refusal with its numbers should be there before the router says that the deadline has passed.
constexpr std::chrono::milliseconds kBeforeDeadline{50};

}  // namespace

Admission::Admission(BlockTier& tier, Loop& loop) : tier_(tier), loop_(loop) {
  tier_.on_freed([this] { look_again(); });
}

Admission::Id Admission::ask(Ask ask, Then then, std::optional<Id> place) {
  const Id id = place ? *place : next_id_++;
  Waiting waiting;
  waiting.id = id;
  waiting.ask = std::move(ask);
  waiting.then = std::move(then);
  queue_.insert(std::ranges::upper_bound(queue_, id, {}, &Waiting::id), std::move(waiting));
  look_again();
  return id;
}

void Admission::withdraw(Id id) {
  const auto found = std::ranges::find(queue_, id, &Waiting::id);
  if (found == queue_.end()) return;
  if (found->timer) loop_.cancel(*found->timer);
  queue_.erase(found);
  look_again();  // what it had claimed is for others
}

void Admission::look_again() {
  if ((queue_.empty() && !above_limit_) || std::exchange(looking_, true)) return;
  loop_.post([this] {
    looking_ = false;
    look();
  });
}

void Admission::limit_changed() {
  above_limit_ = true;
  look_again();
}

void Admission::keep_limit() {
  Budget::Use use = tier_.use();
  use.draining = 0;  // goes by itself
  const std::uint64_t excess = tier_.budget().excess(use);
  above_limit_ = excess > 0;
  if (!above_limit_) return;
  if (evict(excess) == 0) {  // not that much can go: what can
    while (evict(1) > 0) {
    }
  }
}

Admission::Room Admission::room_now(const Budget::Use& use) const {
  Room room;
  room.available = tier_.budget().available(use);
  const Budget::GivenUp given_up = tier_.budget().given_up(loop_.clock().now() - kLate);
  room.coming = given_up.lately + use.removing;
  room.late = given_up.long_ago;
  room.claimed = tier_.budget().excess(use);
  const BlockTier::Place place = tier_.place();
  room.can_hold_one_more = place.can_hold_one_more;
  if (place.free) {
    const std::uint64_t reserved = tier_.budget().loading().reserved;  // and not made yet
    const std::uint64_t free = *place.free - std::min(*place.free, reserved);
    room.is_full_by_others = free < room.available;
    room.available = std::min(room.available, free);
  }
  return room;
}

Error Admission::refusal(const Ask& ask) const {
  const Budget::Use use = tier_.use();
  const bool is_budgets = ask.bytes > tier_.budget().available(use);
  return is_budgets ? tier_.budget().refusal(ask.bytes, use, ask.what) : tier_.place_is_full(ask.what, ask.bytes);
}

// One look at the whole queue, in its order.
void Admission::look() {
  std::vector<std::pair<Then, Result<Budget::Reservation>>> told;
  std::vector<Waiting> still;
  if (above_limit_) keep_limit();
  // One reading for all of it: what a job frees in between were else nowhere, and another model would go for it. And
  // with thousands of models a reading is not cheap.
  const Budget::Use use = tier_.use();
  Room room = room_now(use);
  for (Waiting& waiting : queue_) {
    const std::uint64_t bytes = waiting.ask.bytes;
    const bool fits =
        room.can_hold_one_more && bytes <= room.available && room.claimed + bytes <= room.available + room.coming;
    if (fits || bytes > tier_.budget().limit()) {
      auto reserved = tier_.budget().reserve(bytes, use, waiting.ask.what);
      if (reserved) room.available -= bytes;
      told.emplace_back(std::move(waiting.then), std::move(reserved));
    } else if (promise(waiting, room) || (still.size() < kMostWaiting && keeps_waiting(waiting))) {
      set_timer(waiting);
      still.push_back(std::move(waiting));
      continue;
    } else {
      told.emplace_back(std::move(waiting.then), tl::unexpected(refusal(waiting.ask)));
    }
    if (waiting.timer) loop_.cancel(*waiting.timer);
  }
  queue_ = std::move(still);
  const bool wants_more = above_limit_ || !queue_.empty();
  const auto may_get_more = [&] {
    return tier_.use().evictable > 0 || room.is_full_by_others || !room.can_hold_one_more;
  };
  if (wants_more && may_get_more() && !std::exchange(waiting_for_holders_, true)) {
    loop_.after(BlockTier::kAskHoldersAgain, [this] {
      waiting_for_holders_ = false;
      look_again();
    });
  }
  for (auto& [then, outcome] : told) then(std::move(outcome));
}

// Sees to it that room is on its way, and claims it; false if there is none to be had.
bool Admission::promise(Waiting& waiting, Room& room) {
  const TimePoint now = loop_.clock().now();
  if (!room.can_hold_one_more && room.coming == 0) {
    const std::uint64_t found = evict(1);
    if (found == 0) {
      waiting.promised.reset();
      return false;
    }
    waiting.promised = now;
    room.coming = found;
  }
  const std::uint64_t wanted = room.claimed + waiting.ask.bytes;
  const std::uint64_t expected = room.available + room.coming;
  if (wanted > expected) {
    const std::uint64_t missing = wanted - expected;
    std::uint64_t found = evict(missing);
    if (found > 0) {
      waiting.promised = now;
    } else if (missing <= room.late) {
      found = missing;
      room.late -= missing;
    } else {
      waiting.promised.reset();
      return false;
    }
    room.coming += found;
  }
  if (!waiting.promised) waiting.promised = now;
  if (now >= *waiting.promised + kPromise) return false;
  room.claimed = wanted;
  return true;
}

// Evicts blocks of that many bytes together, or none; returns how many bytes go.
std::uint64_t Admission::evict(std::uint64_t needed) {
  std::vector<EvictionCandidate> candidates = tier_.candidates();
  Freed freed;
  while (freed.bytes() < needed) {
    const auto victims = choose_victims(candidates, needed - freed.bytes(),
                                        [this](const std::string& block) { return tier_.nobody_has(block); });
    if (!victims) return freed.bytes();
    for (const std::string& block : *victims) {
      const auto candidate = std::ranges::find(candidates, block, &EvictionCandidate::block);
      if (tier_.evict(block, "room was needed")) freed.add(*candidate);
      candidates.erase(candidate);  // one that could not be withdrawn is not asked again in this look
    }
  }
  return freed.bytes();
}

bool Admission::keeps_waiting(const Waiting& waiting) const {
  return waiting.ask.until && loop_.clock().now() + kBeforeDeadline < *waiting.ask.until;
}

void Admission::set_timer(Waiting& waiting) {
  if (waiting.timer) loop_.cancel(*waiting.timer);
  const TimePoint now = loop_.clock().now();
  TimePoint when = waiting.ask.until ? *waiting.ask.until - kBeforeDeadline : now + kPromise;
  if (waiting.promised) {
    for (const auto end : {kLate, kPromise}) {
      if (now < *waiting.promised + end) when = std::min(when, *waiting.promised + end);
    }
  }
  // In this very turn: the deadline itself may come due in it too, on a busy machine.
  waiting.timer = loop_.after(std::max(when - now, Duration(0)), [this] { look(); });
}

}  // namespace modelbroker
