#include "broker/tier/budget.h"

#include <algorithm>
#include <utility>

#include "broker/base/sizes.h"

namespace modelbroker {

Budget::Reservation& Budget::Reservation::operator=(Reservation&& other) noexcept {
  if (this != &other) {
    end();
    budget_ = std::exchange(other.budget_, nullptr);
    entry_ = other.entry_;
  }
  return *this;
}

void Budget::Reservation::give_up(TimePoint now) noexcept {
  if (budget_ != nullptr) entry_->given_up = now;
}

Budget::Reservation Budget::Reservation::split(std::uint64_t bytes) {
  entry_->bytes -= bytes;
  return {*budget_, budget_->entries_.insert(entry_, {bytes, std::make_shared<BlockGauge>()})};
}

void Budget::Reservation::end() noexcept {
  if (budget_ != nullptr) std::exchange(budget_, nullptr)->entries_.erase(entry_);
}

Result<Budget::Reservation> Budget::reserve(std::uint64_t bytes, const Use& use, const std::string& what) {
  if (bytes > available(use)) return tl::unexpected(refusal(bytes, use, what));
  return Reservation(*this, entries_.insert(entries_.end(), {bytes, std::make_shared<BlockGauge>()}));
}

std::uint64_t Budget::used(const Use& use) const {
  const Loading now = loading();
  return use.made + use.draining + use.foreign + now.reserved + now.made;
}

std::uint64_t Budget::available(const Use& use) const { return limit_ - std::min(limit_, used(use)); }

std::uint64_t Budget::excess(const Use& use) const { return std::max(limit_, used(use)) - limit_; }

Budget::Loading Budget::loading() const {
  Loading sum;
  for (const Entry& entry : entries_) {
    const std::uint64_t made = entry.gauge->bytes();
    const std::uint64_t left = entry.bytes > made ? entry.bytes - made : 0;
    sum.reserved += left;
    sum.made += made;
  }
  return sum;
}

Budget::GivenUp Budget::given_up(TimePoint long_ago) const {
  GivenUp sum;
  for (const Entry& entry : entries_) {
    if (!entry.given_up) continue;
    (*entry.given_up > long_ago ? sum.lately : sum.long_ago) += std::max(entry.bytes, entry.gauge->bytes());
  }
  return sum;
}

Error Budget::refusal(std::uint64_t bytes, const Use& use, const std::string& what) const {
  const Loading now = loading();
  const std::uint64_t free = available(use);
  Error error{ErrorCode::kResourceExhausted, what + " needs " + format_size(bytes) + " of RAM"};
  if (bytes > limit_) {
    error.message +=
        ", more than the whole budget of " + format_size(limit_) + ": start the broker with a larger --ram-budget";
  } else {
    error.message += "; " + format_size(free) + " of the " + format_size(limit_) + " budget is free (" +
                     format_size(use.made) + " resident, of it " + format_size(use.pinned) + " pinned, " +
                     format_size(use.leased) + " leased and " + format_size(use.evictable) + " evictable";
    if (use.draining > 0) error.message += ", " + format_size(use.draining) + " draining";
    if (use.foreign > 0) {
      error.message +=
          ", " + format_size(use.foreign) + " in blocks of another version, which 'modelbroker clean' frees";
    }
    if (now.reserved + now.made > 0) error.message += ", " + format_size(now.reserved + now.made) + " being loaded";
    error.message += "): unload or unpin a model, wait with a timeout, or start the broker with a larger --ram-budget";
  }
  error.details = {{"needed", bytes},
                   {"limit", limit_},
                   {"available", free},
                   {"made", use.made + now.made},
                   {"reserved", now.reserved},
                   {"draining", use.draining},
                   {"pinned", use.pinned},
                   {"leased", use.leased},
                   {"evictable", use.evictable},
                   {"foreign", use.foreign}};
  return error;
}

}  // namespace modelbroker
