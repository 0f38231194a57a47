#include "broker/models/expiry.h"

#include <algorithm>
#include <string>
#include <vector>

namespace modelbroker {

std::optional<TimePoint> expires_at(const Books& books, const Resident& resident) {
  if (resident.keep_alive < Duration(0) || !books.evictable(resident)) return std::nullopt;
  const Duration least = resident.was_leased ? Duration(0) : books.config.grace;
  return resident.last_used + std::max(resident.keep_alive, least);
}

void Expiry::changed(const Resident& resident) {
  if (const auto when = expires_at(books_, resident)) arm(*when);
}

void Expiry::look() {
  const TimePoint now = books_.clock.now();
  std::vector<std::string> due;
  std::optional<TimePoint> next;
  for (const auto& [id, resident] : books_.store.all()) {
    const auto when = expires_at(books_, resident);
    if (!when) continue;
    if (*when <= now) {
      due.push_back(id);
    } else {
      next = std::min(next.value_or(*when), *when);
    }
  }
  for (const std::string& block : due) {
    Resident& resident = *books_.store.by_block(block);
    if (!reaper_.nobody_has(resident) || !reaper_.evict(resident, "keep_alive is over")) {
      next = std::min(next.value_or(now + Reaper::kAskAgain), now + Reaper::kAskAgain);
    }
  }
  if (next) arm(*next);
}

void Expiry::arm(TimePoint when) {
  if (timer_ && timer_->first <= when) return;
  if (timer_) loop_.cancel(*timer_);
  timer_ = loop_.after(std::max(when - books_.clock.now(), Duration(0)), [this] {
    timer_.reset();
    look();
  });
}

}  // namespace modelbroker
