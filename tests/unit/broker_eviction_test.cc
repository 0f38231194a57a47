// Which blocks go when room is wanted.
#include "broker/tier/eviction.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <random>
#include <set>

#include "broker/models/remembered_names.h"

namespace modelbroker {
namespace {

using Victims = std::optional<std::vector<std::string>>;

TimePoint at(int second) { return TimePoint(std::chrono::seconds(second)); }
bool anyone(const std::string&) { return true; }

std::set<std::string> set_of(const Victims& victims) { return {victims->begin(), victims->end()}; }

TEST(EvictionTest, TheLeastRecentlyUsedGoFirstWhereAllCostTheSame) {
  const std::vector<EvictionCandidate> candidates{
      {"b", 10, 1, at(2)}, {"a", 10, 1, at(1)}, {"d", 10, 1, at(4)}, {"c", 10, 1, at(3)}};
  EXPECT_EQ(set_of(choose_victims(candidates, 1, anyone)), (std::set<std::string>{"a"}));
  EXPECT_EQ(set_of(choose_victims(candidates, 20, anyone)), (std::set<std::string>{"a", "b"}));
  EXPECT_EQ(set_of(choose_victims(candidates, 40, anyone)).size(), 4U);
}

TEST(EvictionTest, NothingGoesWhereAllTogetherAreNotEnough) {
  EXPECT_EQ(choose_victims({{"a", 10, 1, at(1)}, {"b", 10, 1, at(2)}}, 21, anyone), std::nullopt);
  EXPECT_EQ(choose_victims({}, 1, anyone), std::nullopt);
}

TEST(EvictionTest, WhoeverIsNotNeededAfterAllStays) {
  // The small one goes first, and is not needed once the large one goes too.
  const auto victims = choose_victims({{"small", 1, 1, at(1)}, {"large", 100, 1, at(2)}}, 100, anyone);
  EXPECT_EQ(set_of(victims), (std::set<std::string>{"large"}));
}

TEST(EvictionTest, WhatSomebodyHasIsPassedOver) {
  std::vector<std::string> asked;
  const auto can_go = [&](const std::string& block) {
    asked.push_back(block);
    return block != "a";
  };
  EXPECT_EQ(set_of(choose_victims({{"a", 10, 1, at(1)}, {"b", 10, 1, at(2)}, {"c", 10, 1, at(3)}}, 10, can_go)),
            (std::set<std::string>{"b"}));
  EXPECT_EQ(asked, (std::vector<std::string>{"a", "b"}));  // nobody is asked without need
}

TEST(EvictionTest, WhatIsSlowToReadAgainForItsSizeStaysLonger) {
  constexpr std::uint64_t kGiB = 1ULL << 30;
  const double fast = value_when_used(0, 0.3, kGiB);
  const double slow = value_when_used(0, 60, kGiB);
  EXPECT_GT(slow, fast);
  EXPECT_EQ(set_of(choose_victims({{"slow", kGiB, slow, at(1)}, {"fast", kGiB, fast, at(9)}}, 1, anyone)),
            (std::set<std::string>{"fast"}));
  // Not for ever: what is used while the slow one is not overtakes it in the end.
  double age = 0;
  int evictions = 0;
  for (; value_when_used(age, 0.3, kGiB) <= slow && evictions < 1000; ++evictions) {
    age = value_when_used(age, 0.3, kGiB);
  }
  EXPECT_LT(evictions, 1000);
  EXPECT_GT(evictions, 10);
  EXPECT_GT(value_when_used(0, 1, 0), 0);  // no division by nothing
}

TEST(EvictionTest, VictimsAreEnoughAndNoneOfThemIsTooMany) {
  std::mt19937 random(20240607);
  for (int round = 0; round < 2000; ++round) {
    std::vector<EvictionCandidate> candidates;
    std::uint64_t total = 0;
    for (unsigned i = 0; i < random() % 12; ++i) {
      candidates.push_back({std::to_string(i), 1 + random() % 50, static_cast<double>(random() % 4),
                            at(static_cast<int>(random() % 5))});
      total += candidates.back().bytes;
    }
    const std::uint64_t needed = 1 + random() % 200;
    const Victims victims = choose_victims(candidates, needed, anyone);
    ASSERT_EQ(victims.has_value(), total >= needed);
    if (!victims) continue;
    std::uint64_t bytes = 0;
    std::uint64_t least = ~std::uint64_t{0};
    for (const std::string& block : *victims) {
      const std::uint64_t size = std::ranges::find(candidates, block, &EvictionCandidate::block)->bytes;
      bytes += size;
      least = std::min(least, size);
    }
    EXPECT_GE(bytes, needed);
    EXPECT_LT(bytes - least, needed);
  }
}

TEST(RememberedNamesTest, AreRememberedUpToALimit) {
  RememberedNames names;
  names.remember("m", {{0, "/old"}, "unet", Duration(5)});
  names.remember("m", {{0, "/new"}, "vae", Duration(6)});
  ASSERT_NE(names.find("m"), nullptr);
  EXPECT_EQ(names.find("m")->given.path, "/new");
  EXPECT_EQ(names.all().size(), 1U);
  EXPECT_EQ(names.at_path("/new"), std::vector<std::string>{"m"});
  EXPECT_TRUE(names.at_path("/old").empty());
  names.forget("m");
  names.forget("m");
  EXPECT_EQ(names.find("m"), nullptr);
  for (std::size_t i = 0; i < RememberedNames::kMost + 5; ++i) names.remember(std::to_string(i), {});
  EXPECT_EQ(names.all().size(), RememberedNames::kMost);
  EXPECT_EQ(names.find("4"), nullptr);
  EXPECT_NE(names.find("5"), nullptr);
}

RememberedNames::Model loaded_by(std::uint32_t uid) {
  RememberedNames::Model model;
  model.given.loader = uid;
  return model;
}

TEST(RememberedNamesTest, NobodyPushesOutAnothersByManyOfHisOwn) {
  RememberedNames names;
  for (int i = 0; i < 3; ++i) names.remember("theirs" + std::to_string(i), loaded_by(2));
  names.remember("moved", loaded_by(2));
  names.remember("moved", loaded_by(3));
  for (std::size_t i = 0; i < 2 * RememberedNames::kMost; ++i) names.remember(std::to_string(i), loaded_by(1));
  EXPECT_EQ(names.all().size(), RememberedNames::kMost);
  for (const char* name : {"theirs0", "theirs1", "theirs2", "moved"}) EXPECT_NE(names.find(name), nullptr) << name;
  EXPECT_EQ(names.find(std::to_string(RememberedNames::kMost + 3)), nullptr);
  EXPECT_NE(names.find(std::to_string(RememberedNames::kMost + 4)), nullptr);
  names.clear();
  for (std::size_t i = 0; i < RememberedNames::kMost + 5; ++i) names.remember(std::to_string(i), loaded_by(2));
  EXPECT_EQ(names.all().size(), RememberedNames::kMost);
  EXPECT_EQ(names.find("4"), nullptr);
}

}  // namespace
}  // namespace modelbroker
