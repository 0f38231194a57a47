// How much the RAM tier may hold: what the machine says, what is refused, and sizes as people write them.
#include "broker/tier/budget.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <memory>

#include "broker/base/sizes.h"
#include "broker/ram/memory_facts.h"
#include "tests/support/block_fixture.h"
#include "tests/support/faulty_os.h"
#include "tests/support/temp_directory.h"

namespace modelbroker {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kGiB = 1ULL << 30;

// ---- what the machine has left

class MemoryFactsTest : public ::testing::Test {
 protected:
  MemoryFactsTest() {
    fs::create_directories(proc_ + "/self");
    fs::create_directories(cgroup_);
    put(proc_ + "/meminfo", "MemTotal:       1000 kB\nMemFree:  500 kB\nMemAvailable:    700 kB\nBuffers: 1 kB\n");
  }
  static void put(const std::string& path, const std::string& text) { std::ofstream(path) << text; }
  // A cgroup of this name with these files.
  void limit(const std::string& path, const std::string& most, const std::string& current) const {
    fs::create_directories(cgroup_ + path);
    put(cgroup_ + path + "/memory.max", most + "\n");
    put(cgroup_ + path + "/memory.current", current + "\n");
  }
  [[nodiscard]] Result<MemoryFacts> read() const { return read_memory_facts(*os_, folder_.path(), {proc_, cgroup_}); }
  [[nodiscard]] std::optional<std::uint64_t> left(const std::string& own) const {
    put(proc_ + "/self/cgroup", own);
    const auto facts = read();
    EXPECT_TRUE(facts);
    return facts->cgroup_left;
  }

  const std::unique_ptr<Os> os_ = make_plain_os();
  testing::TempDirectory folder_;
  const std::string proc_ = folder_ / "proc";
  const std::string cgroup_ = folder_ / "cgroup";
};

TEST_F(MemoryFactsTest, AreReadFromTheKernelsFiles) {
  const auto facts = read();
  ASSERT_TRUE(facts) << facts.error().message;
  EXPECT_EQ(facts->available, 700U * 1024);
  EXPECT_GT(facts->file_system_free, 0U);
  EXPECT_FALSE(facts->cgroup_left);  // no cgroup file at all
}

TEST_F(MemoryFactsTest, AreReadOnThisMachine) {
  const auto facts = read_memory_facts(*os_, folder_.path());
  ASSERT_TRUE(facts) << facts.error().message;
  EXPECT_GT(facts->available, 0U);
}

TEST_F(MemoryFactsTest, TheTightestCgroupOnTheWayUpCounts) {
  limit("", "max", "5");
  limit("/a", "1000", "100");
  limit("/a/b", "5000", "100");
  limit("/a/b/c", "max", "100");
  EXPECT_EQ(left("0::/a/b/c\n"), 900U);
  EXPECT_EQ(left("12:memory:/other\n1:name=systemd:/x\n0::/a/b\n"), 900U);
  limit("/a/b", "150", "100");
  EXPECT_EQ(left("0::/a/b/c\n"), 50U);
  limit("/a/b", "100", "150");  // already over it
  EXPECT_EQ(left("0::/a/b/c\n"), 0U);
  limit("", "30", "5");
  EXPECT_EQ(left("0::/a\n"), 25U);
  EXPECT_EQ(left("0::/\n"), 25U);
  EXPECT_EQ(left("0::/gone/away\n"), 25U);
}

TEST_F(MemoryFactsTest, PageCacheOfTheCgroupIsNotGone) {
  limit("/a", "1000", "900");
  put(cgroup_ + "/a/memory.stat",
      "anon 1\nfile 500\nshmem 200\ninactive_anon 9\nactive_anon 200\n"
      "inactive_file 100\nactive_file 200\n");
  EXPECT_EQ(left("0::/a\n"), 400U);
}

TEST_F(MemoryFactsTest, ALoadStopsBeforeTheReserve) {
  put(proc_ + "/self/cgroup", "0::/a\n");
  const Headroom headroom(*os_, 100 * 1024, {proc_, cgroup_});  // 700 KiB are available
  EXPECT_TRUE(headroom.check(600 * 1024));
  const auto refused = headroom.check(600 * 1024 + 1);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kResourceExhausted);
  EXPECT_EQ(refused.error().details,
            (std::map<std::string, std::uint64_t>{
                {"needed", 600 * 1024 + 1}, {"available", 700 * 1024}, {"memory_reserve", 100 * 1024}}));
  EXPECT_NE(refused.error().message.find("the machine"), std::string::npos);
  limit("/a", "300000", "100000");
  EXPECT_TRUE(headroom.check(90'000));
  const auto by_cgroup = headroom.check(100'000);
  ASSERT_FALSE(by_cgroup);
  EXPECT_NE(by_cgroup.error().message.find("control group"), std::string::npos);
  // What the kernel does not tell refuses nothing.
  EXPECT_TRUE(Headroom(*os_, 1ULL << 50, {folder_ / "absent", folder_ / "absent"}).check(1ULL << 50));
}

TEST_F(MemoryFactsTest, NoLimitIsNoNumber) {
  limit("", "max", "5");
  EXPECT_EQ(left("0::/\n"), std::nullopt);
  EXPECT_EQ(left("4:memory:/a\n"), std::nullopt);  // version 1 only
  EXPECT_EQ(left(""), std::nullopt);
  EXPECT_EQ(left("0::\n"), std::nullopt);
  EXPECT_EQ(left("0::no/path\n"), std::nullopt);
}

TEST_F(MemoryFactsTest, WhatCannotBeReadIsATypedError) {
  put(proc_ + "/meminfo", "MemTotal: 1 kB\n");
  EXPECT_EQ(read().error().code, ErrorCode::kFailedPrecondition);
  EXPECT_NE(read().error().message.find("--ram-budget"), std::string::npos);
  put(proc_ + "/meminfo", "MemAvailable: lots\n");
  EXPECT_EQ(read().error().code, ErrorCode::kFailedPrecondition);
  fs::remove(proc_ + "/meminfo");
  EXPECT_EQ(read().error().code, ErrorCode::kNotFound);
  EXPECT_EQ(read_memory_facts(*os_, folder_ / "absent").error().code, ErrorCode::kNotFound);
}

TEST(DefaultLimitTest, IsTheSmallestShareAndWhatIsHeldAlready) {
  EXPECT_EQ(default_limit({100 * kGiB, 200 * kGiB, {}}, 0), 70 * kGiB);
  EXPECT_EQ(default_limit({100 * kGiB, 50 * kGiB, {}}, 0), 45 * kGiB);
  EXPECT_EQ(default_limit({100 * kGiB, 50 * kGiB, 10 * kGiB}, 0), 10 * kGiB - kGiB / 2);
  EXPECT_EQ(default_limit({100 * kGiB, 50 * kGiB, kGiB / 4}, 0), 0U);
  EXPECT_EQ(default_limit({100 * kGiB, 50 * kGiB, 0}, 3), 3U);
  EXPECT_EQ(default_limit({0, 0, {}}, 7 * kGiB), 7 * kGiB);
  EXPECT_EQ(default_limit({100 * kGiB, 200 * kGiB, {}}, 5), 70 * kGiB + 5);
}

// ---- the budget

class MadeBlockTest : public testing::BlockFixture {};

TEST(BudgetTest, WhatIsReservedMadeAndDrainingNeverPassesTheLimit) {
  Budget budget(100);
  EXPECT_EQ(budget.limit(), 100U);
  const Budget::Use use{.made = 30, .draining = 20};
  auto forty = budget.reserve(40, use, "x");
  EXPECT_TRUE(forty);
  EXPECT_EQ(budget.loading().reserved, 40U);
  {
    const auto ten = budget.reserve(10, use, "x");
    EXPECT_TRUE(ten);
    EXPECT_FALSE(budget.reserve(1, use, "x"));
    EXPECT_TRUE(budget.reserve(0, use, "x"));
    EXPECT_EQ(budget.loading().reserved, 50U);
  }
  EXPECT_EQ(budget.loading().reserved, 40U);
  Budget::Reservation moved = std::move(*forty);
  EXPECT_EQ(budget.available(use), 10U);
  moved.end();
  moved.end();
  EXPECT_EQ(budget.loading().reserved, 0U);
  const auto all = budget.reserve(100, {}, "x");
  EXPECT_TRUE(all);
  EXPECT_FALSE(budget.reserve(1, {}, "x"));
  budget.set_limit(50);  // less than what is taken: nothing more, and no wrap
  EXPECT_EQ(budget.available({}), 0U);
  EXPECT_EQ(budget.excess({.made = 20, .draining = 5}), 75U);
  budget.set_limit(150);
  EXPECT_EQ(budget.excess({.made = 20, .draining = 5}), 0U);
}

TEST_F(MadeBlockTest, WhatIsMadeIsNoLongerReserved) {
  Budget budget(64 * kHugePage);
  auto reservation = budget.reserve(8 * kHugePage, {}, "x");
  ASSERT_TRUE(reservation);
  BlockPlan plan{.payload_size = 5 * kHugePage, .manifest_size = 100, .generation = 1};
  plan.gauge = reservation->gauge();
  {
    auto writer = BlockWriter::create(*os_, *directory_, plan);
    ASSERT_TRUE(writer) << writer.error().message;
    EXPECT_EQ(budget.loading().made, 0U);
    ASSERT_TRUE(writer->make_pages({0, 3 * kHugePage}));
    EXPECT_EQ(budget.loading().made, 3 * kHugePage);
    EXPECT_EQ(budget.loading().reserved, 5 * kHugePage);
    EXPECT_EQ(budget.available({}), 56 * kHugePage);
    const TimePoint cancelled{std::chrono::seconds(5)};
    reservation->give_up(cancelled);
    EXPECT_EQ(budget.given_up(cancelled - Duration(1)).lately, 8 * kHugePage);
    EXPECT_EQ(budget.given_up(cancelled - Duration(1)).long_ago, 0U);
    EXPECT_EQ(budget.given_up(cancelled).lately, 0U);
    EXPECT_EQ(budget.given_up(cancelled).long_ago, 8 * kHugePage);
  }
  EXPECT_EQ(budget.loading().made, 0U);
  EXPECT_EQ(budget.loading().reserved, 8 * kHugePage);
}

TEST(BudgetTest, ARefusalCarriesEveryNumber) {
  Budget budget(100 * kGiB);
  const auto other = budget.reserve(5 * kGiB, {}, "other");
  ASSERT_TRUE(other);
  const auto refused = budget.reserve(30 * kGiB, {60 * kGiB, 10 * kGiB, 20 * kGiB, 40 * kGiB, 7 * kGiB}, "'flux'");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kResourceExhausted);
  EXPECT_EQ(refused.error().details, (std::map<std::string, std::uint64_t>{{"needed", 30 * kGiB},
                                                                           {"limit", 100 * kGiB},
                                                                           {"available", 25 * kGiB},
                                                                           {"made", 60 * kGiB},
                                                                           {"reserved", 5 * kGiB},
                                                                           {"draining", 10 * kGiB},
                                                                           {"pinned", 20 * kGiB},
                                                                           {"leased", 40 * kGiB},
                                                                           {"evictable", 7 * kGiB},
                                                                           {"foreign", 0}}));
  for (const char* const part :
       {"'flux'", "needs 30.0 GiB", "25.0 GiB of the 100.0 GiB", "60.0 GiB resident", "20.0 GiB pinned",
        "40.0 GiB leased", "7.0 GiB evictable", "10.0 GiB draining", "5.0 GiB being loaded"}) {
    EXPECT_NE(refused.error().message.find(part), std::string::npos) << part << ": " << refused.error().message;
  }
  EXPECT_EQ(budget.loading().reserved, 5 * kGiB);
}

TEST(BudgetTest, WhatCanNeverFitIsToldSo) {
  Budget budget(100);
  const auto refused = budget.reserve(101, {}, "x");
  EXPECT_NE(refused.error().message.find("more than the whole budget"), std::string::npos);
  EXPECT_NE(refused.error().message.find("--ram-budget"), std::string::npos);
  EXPECT_FALSE(budget.reserve(~std::uint64_t{0}, {}, "x"));
}

TEST(BudgetTest, ABrokerThatStartsOverItsBudgetHasNothingAvailable) {
  Budget budget(100);
  const auto refused = budget.reserve(1, {.made = 150}, "x");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().details.at("available"), 0U);
}

// ---- sizes

TEST(SizeTest, AreReadAsPeopleWriteThem) {
  for (const auto& [text, bytes] : std::vector<std::pair<std::string, std::uint64_t>>{{"0", 0},
                                                                                      {"1048576", 1048576},
                                                                                      {"12B", 12},
                                                                                      {"4KiB", 4096},
                                                                                      {"4 KiB", 4096},
                                                                                      {"1.5 GB", 1'500'000'000},
                                                                                      {"4GiB", 4 * kGiB},
                                                                                      {"0.5GiB", kGiB / 2},
                                                                                      {"2TiB", 2048 * kGiB},
                                                                                      {"3TB", 3'000'000'000'000},
                                                                                      {"7MB", 7'000'000},
                                                                                      {"7MiB", 7 << 20},
                                                                                      {"2KB", 2000},
                                                                                      {"0.1B", 0}}) {
    const auto parsed = parse_size(text);
    ASSERT_TRUE(parsed) << text;
    EXPECT_EQ(*parsed, bytes) << text;
  }
}

TEST(SizeTest, AnythingElseIsRefusedWithWhatIsAllowed) {
  for (const std::string bad : {"", "GiB", "x", "-1", "+1", "4gib", "4G", "4 Gi B", "1e9", "0x10", "inf", "nan",
                                "1,5GB", "4GiB!", " 4GiB", "9999999999999TiB", "8388608TiB"}) {
    const auto parsed = parse_size(bad);
    ASSERT_FALSE(parsed) << bad;
    EXPECT_EQ(parsed.error().code, ErrorCode::kInvalidArgument);
    EXPECT_NE(parsed.error().message.find("GiB"), std::string::npos);
  }
  EXPECT_LT(parse_size(std::string(1'000'000, 'x')).error().message.size(), 500U);
}

TEST(SizeTest, AreShownInTheLargestUnitThatFits) {
  EXPECT_EQ(format_size(0), "0 B");
  EXPECT_EQ(format_size(1023), "1023 B");
  EXPECT_EQ(format_size(1024), "1.0 KiB");
  EXPECT_EQ(format_size(1536), "1.5 KiB");
  EXPECT_EQ(format_size(2'791'728'742), "2.6 GiB");
  EXPECT_EQ(format_size(5000 * 1024 * kGiB), "5000.0 TiB");
}

}  // namespace
}  // namespace modelbroker
