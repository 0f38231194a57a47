// RamTier: RAM as a tier: the models there, the budget of their blocks, and the file system that they lie on.
//
// Threads: the loop's only.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "broker/base/environment.h"
#include "broker/models/registry.h"
#include "broker/models/withdrawal.h"
#include "broker/tier/block_tier.h"

namespace modelbroker {

class RamTier final : public BlockTier {
 public:
  RamTier(Environment& env, RamStore& ram, Registry& models, const LeaseBook& leases, Reaper& reaper,
          Withdrawal& withdrawal)
      : env_(env), ram_(ram), models_(models), leases_(leases), reaper_(reaper), withdrawal_(withdrawal) {}

  [[nodiscard]] Budget& budget() override { return ram_.budget; }
  [[nodiscard]] Budget::Use use() const override;
  [[nodiscard]] Place place() const override;
  [[nodiscard]] Error place_is_full(const std::string& what, std::uint64_t bytes) const override;
  [[nodiscard]] std::vector<EvictionCandidate> candidates() const override;
  [[nodiscard]] bool nobody_has(const std::string& model) override;
  [[nodiscard]] bool evict(const std::string& model, const std::string& why) override;
  void on_freed(std::function<void()> look) override { reaper_.on_freed(std::move(look)); }

  // When a model's keep_alive is over; nothing: never, as things are.
  [[nodiscard]] std::optional<TimePoint> expires_at(const ModelEntry& model) const;

 private:
  // By our own word; the kernel's is asked before it is done.
  [[nodiscard]] bool evictable(const ModelEntry& model) const;
  [[nodiscard]] bool is_free(const RamBlock& block) const;

  Environment& env_;
  RamStore& ram_;
  Registry& models_;
  const LeaseBook& leases_;
  Reaper& reaper_;
  Withdrawal& withdrawal_;
};

}  // namespace modelbroker
