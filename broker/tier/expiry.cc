#include "broker/tier/expiry.h"

#include <algorithm>

namespace modelbroker {

void Expiry::changed(std::optional<TimePoint> end) {
  if (end) arm(*end);
}

void Expiry::look() {
  const TimePoint now = loop_.clock().now();
  std::optional<TimePoint> next;
  const auto again_at = [&next](TimePoint when) { next = std::min(next.value_or(when), when); };
  for (const EvictionCandidate& candidate : tier_.candidates()) {
    if (!candidate.expires) continue;
    if (*candidate.expires > now) {
      again_at(*candidate.expires);
    } else if (!tier_.nobody_has(candidate.block) || !tier_.evict(candidate.block, "keep_alive is over")) {
      again_at(now + BlockTier::kAskHoldersAgain);
    }
  }
  if (next) arm(*next);
}

void Expiry::arm(TimePoint when) {
  if (timer_ && timer_->first <= when) return;
  if (timer_) loop_.cancel(*timer_);
  timer_ = loop_.after(std::max(when - loop_.clock().now(), Duration(0)), [this] {
    timer_.reset();
    look();
  });
}

}  // namespace modelbroker
