// FakeTier: a tier whose blocks are numbers, and whose memory comes back when the test says so.
#pragma once

#include <algorithm>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "broker/tier/block_tier.h"

namespace modelbroker::testing {

class FakeTier final : public BlockTier {
 public:
  explicit FakeTier(std::uint64_t limit) : budget_(limit) {}

  // ---- what the test says

  // A block that nobody uses. `value`: the least goes first.
  void add(const std::string& block, std::uint64_t bytes, double value = 1,
           std::optional<TimePoint> expires = std::nullopt) {
    blocks_[block] = {block, bytes, value, TimePoint(), expires};
  }
  void keep(const std::string& block) { in_use_.insert(block); }  // leased or pinned
  void let_go(const std::string& block) { in_use_.erase(block); }
  void map_somewhere(const std::string& block) { mapped_.insert(block); }  // by the kernel's word alone
  void unmap(const std::string& block) { mapped_.erase(block); }
  // An evicted block's memory is free.
  void free(const std::string& block) {
    removing_.erase(block);
    freed_();
  }
  void set_place(Place place) { place_ = place; }

  std::vector<std::string> evicted;  // "block: why"

  // ---- the tier

  [[nodiscard]] Budget& budget() override { return budget_; }
  [[nodiscard]] Budget::Use use() const override {
    Budget::Use use;
    for (const auto& [name, block] : blocks_) {
      use.made += block.bytes;
      if (!in_use_.contains(name)) use.evictable += block.bytes;
    }
    for (const auto& [name, bytes] : removing_) use.draining += bytes;
    use.removing = use.draining;
    return use;
  }
  [[nodiscard]] Place place() const override { return place_; }
  [[nodiscard]] Error place_is_full(const std::string& what, std::uint64_t /*bytes*/) const override {
    return {ErrorCode::kResourceExhausted, "the place is full: " + what};
  }
  [[nodiscard]] std::vector<EvictionCandidate> candidates() const override {
    std::vector<EvictionCandidate> candidates;
    for (const auto& [name, block] : blocks_) {
      if (!in_use_.contains(name)) candidates.push_back(block);
    }
    return candidates;
  }
  [[nodiscard]] bool nobody_has(const std::string& block) override { return !mapped_.contains(block); }
  [[nodiscard]] bool evict(const std::string& block, const std::string& why) override {
    removing_[block] = blocks_.at(block).bytes;
    blocks_.erase(block);
    evicted.push_back(block + ": " + why);
    return true;
  }
  void on_freed(std::function<void()> look) override { freed_ = std::move(look); }

 private:
  Budget budget_;
  Place place_;
  std::map<std::string, EvictionCandidate> blocks_;
  std::map<std::string, std::uint64_t> removing_;
  std::set<std::string> in_use_, mapped_;
  std::function<void()> freed_ = [] {};
};

}  // namespace modelbroker::testing
