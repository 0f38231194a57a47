// Expiry: keep_alive. A model that nobody uses for that long is evicted.
//
// Counted from its last use: a load, an attach, or the end of a lease. A pinned or leased model does not expire. One
// that was loaded and not attached yet is kept for `grace` at least, so that keep_alive 0 means "until its last worker
// lets go". Threads: the loop's.
#pragma once

#include <optional>

#include "broker/base/loop.h"
#include "broker/models/books.h"
#include "broker/models/reaper.h"

namespace modelbroker {

// When it ends; nothing: not as things are.
[[nodiscard]] std::optional<TimePoint> expires_at(const Books& books, const Resident& resident);

class Expiry {
 public:
  Expiry(Books& books, Loop& loop, Reaper& reaper) : books_(books), loop_(loop), reaper_(reaper) {}
  // It was used, released, unpinned or told another keep_alive.
  void changed(const Resident& resident);
  void look();  // at all of them

 private:
  void arm(TimePoint when);
  Books& books_;
  Loop& loop_;
  Reaper& reaper_;
  std::optional<TimerId> timer_;
};

}  // namespace modelbroker
