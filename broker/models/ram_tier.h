// RamTier: RAM as a tier: the models there, the budget of their blocks, and the file system that they lie on.
//
// Threads: the loop's only.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "broker/models/books.h"
#include "broker/models/withdrawal.h"
#include "broker/tier/block_tier.h"

namespace modelbroker {

// When a model's keep_alive is over; nothing: never, as things are.
[[nodiscard]] std::optional<TimePoint> expires_at(const Books& books, const ModelEntry& model);

class RamTier final : public BlockTier {
 public:
  RamTier(Books& books, Reaper& reaper, Withdrawal& withdrawal)
      : books_(books), reaper_(reaper), withdrawal_(withdrawal) {}

  [[nodiscard]] Budget& budget() override { return books_.budget; }
  [[nodiscard]] Budget::Use use() const override { return books_.use(); }
  [[nodiscard]] Place place() const override;
  [[nodiscard]] Error place_is_full(const std::string& what, std::uint64_t bytes) const override;
  [[nodiscard]] std::vector<EvictionCandidate> candidates() const override;
  [[nodiscard]] bool nobody_has(const std::string& model) override;
  [[nodiscard]] bool evict(const std::string& model, const std::string& why) override;
  void on_freed(std::function<void()> look) override { reaper_.on_freed(std::move(look)); }

 private:
  Books& books_;
  Reaper& reaper_;
  Withdrawal& withdrawal_;
};

}  // namespace modelbroker
