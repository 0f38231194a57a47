// Budget: how many bytes the RAM tier may hold, and the refusal with numbers.
//
// reserved (admitted, not yet made) + made + draining never pass the limit. A reservation lasts from the admission of
// a load until its block is in the store, or given up; what is made meanwhile moves from `reserved` to `made`.
// Threads: the broker's only. Failure: resource_exhausted with every number that helps to decide.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <string>

#include "broker/base/clock.h"
#include "shm/block.h"
#include "shm/error.h"

namespace modelbroker {

class Budget {
  struct Entry {
    std::uint64_t bytes = 0;
    std::shared_ptr<BlockGauge> gauge;
    std::optional<TimePoint> given_up{};
  };

 public:
  explicit Budget(std::uint64_t limit) noexcept : limit_(limit) {}
  Budget(const Budget&) = delete;
  Budget& operator=(const Budget&) = delete;

  // Ends with its destruction. The budget outlives it.
  class Reservation {
   public:
    Reservation() noexcept = default;
    Reservation(Reservation&& other) noexcept : budget_(std::exchange(other.budget_, nullptr)), entry_(other.entry_) {}
    Reservation& operator=(Reservation&& other) noexcept;
    Reservation(const Reservation&) = delete;
    Reservation& operator=(const Reservation&) = delete;
    ~Reservation() { end(); }

    [[nodiscard]] explicit operator bool() const noexcept { return budget_ != nullptr; }
    // What the block's writer reports to.
    [[nodiscard]] const std::shared_ptr<BlockGauge>& gauge() const noexcept { return entry_->gauge; }
    // It should end soon: its load was cancelled.
    void give_up(TimePoint now) noexcept;
    // Takes `bytes` of it for a block of its own. REQUIRES: it has more, and nothing was made of it yet.
    [[nodiscard]] Reservation split(std::uint64_t bytes);
    void end() noexcept;

   private:
    friend class Budget;
    Reservation(Budget& budget, std::list<Entry>::iterator entry) noexcept : budget_(&budget), entry_(entry) {}
    Budget* budget_ = nullptr;
    std::list<Entry>::iterator entry_;
  };

  struct Use {  // what the store counts, in bytes
    std::uint64_t made = 0, draining = 0, pinned = 0, leased = 0, evictable = 0, removing = 0;
    std::uint64_t foreign = 0;  // blocks that this version cannot read
  };
  // Reserves `bytes`, or refuses and changes nothing. `what` names the file.
  [[nodiscard]] Result<Reservation> reserve(std::uint64_t bytes, const Use& use, const std::string& what);
  [[nodiscard]] Error refusal(std::uint64_t bytes, const Use& use, const std::string& what) const;
  [[nodiscard]] std::uint64_t available(const Use& use) const;
  // What is used above the limit: it was lowered.
  [[nodiscard]] std::uint64_t excess(const Use& use) const;

  [[nodiscard]] std::uint64_t limit() const noexcept { return limit_; }
  void set_limit(std::uint64_t limit) noexcept { limit_ = limit; }

  struct Loading {
    std::uint64_t reserved = 0;  // admitted, not yet made
    std::uint64_t made = 0;      // of blocks that are being filled
  };
  [[nodiscard]] Loading loading() const;
  // Of both, what is about to be free: given up after `long_ago`, or so long ago that its read may hang.
  struct GivenUp {
    std::uint64_t lately = 0, long_ago = 0;
  };
  [[nodiscard]] GivenUp given_up(TimePoint long_ago) const;

 private:
  [[nodiscard]] std::uint64_t used(const Use& use) const;
  std::uint64_t limit_;
  std::list<Entry> entries_;
};

}  // namespace modelbroker
