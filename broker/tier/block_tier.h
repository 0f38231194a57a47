// BlockTier: a place for blocks with a budget: what admission, eviction and expiry need of it.
//
// RAM is one, and each device will be. Admission and Expiry know no names, files or mappings: they ask a tier. Threads:
// the loop's only.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "broker/tier/budget.h"
#include "broker/tier/eviction.h"
#include "shm/error.h"

namespace modelbroker {

class BlockTier {
 public:
  // What the place itself has left, whatever the budget says: others may fill it too.
  struct Place {
    std::optional<std::uint64_t> free;  // bytes; nothing: no limit of its own, or not known
    bool can_hold_one_more = true;      // a file, a handle
  };
  // No word comes when somebody lets go of a block without a lease: who waits for that asks again so often.
  static constexpr std::chrono::seconds kAskHoldersAgain{1};

  virtual ~BlockTier() = default;
  BlockTier(const BlockTier&) = delete;
  BlockTier& operator=(const BlockTier&) = delete;

  [[nodiscard]] virtual Budget& budget() = 0;
  [[nodiscard]] virtual Budget::Use use() const = 0;
  [[nodiscard]] virtual Place place() const = 0;
  // The refusal where the budget would have had the room, and the place has not. `what` names the file.
  [[nodiscard]] virtual Error place_is_full(const std::string& what, std::uint64_t bytes) const = 0;
  // Blocks that may go by the broker's own word: no lease, no pin, no answer under way that hands them out.
  [[nodiscard]] virtual std::vector<EvictionCandidate> candidates() const = 0;
  // By the kernel's word too.
  [[nodiscard]] virtual bool nobody_has(const std::string& block) = 0;
  // Withdraws a candidate that nobody has; its memory comes later. False if it has to stay.
  [[nodiscard]] virtual bool evict(const std::string& block, const std::string& why) = 0;
  // `look` is called whenever memory became free.
  virtual void on_freed(std::function<void()> look) = 0;

 protected:
  BlockTier() = default;
};

}  // namespace modelbroker
