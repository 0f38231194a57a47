// Expiry: keep_alive. A model that nobody uses for that long is evicted.
//
// Counted from its last use: a load, an attach, or the end of a lease. A pinned or leased model does not expire. One
// that was loaded and not attached yet is kept for `grace` at least, so that keep_alive 0 means "until its last worker
// lets go". Threads: the loop's.
#pragma once

#include <optional>

#include "broker/base/loop.h"
#include "broker/tier/block_tier.h"

namespace modelbroker {

class Expiry {
 public:
  Expiry(BlockTier& tier, Loop& loop) : tier_(tier), loop_(loop) {}
  // A block was used, released, unpinned or told another keep_alive: it ends then, or never.
  void changed(std::optional<TimePoint> end);
  void look();  // at all of them

 private:
  void arm(TimePoint when);
  BlockTier& tier_;
  Loop& loop_;
  std::optional<TimerId> timer_;
};

}  // namespace modelbroker
