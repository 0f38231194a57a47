// How much the RAM tier may hold: what the machine says, what is refused, and sizes as people write them.
#include "broker/ram/budget.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <memory>

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
  [[nodiscard]] Result<MemoryFacts> read() const { return read_memory_facts(*os_, folder_.path(), proc_, cgroup_); }
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

TEST(BudgetTest, WhatIsReservedMadeAndDrainingNeverPassesTheLimit) {
  Budget budget(100);
  EXPECT_EQ(budget.limit(), 100U);
  EXPECT_TRUE(budget.reserve(40, {.made = 30, .draining = 20}, "x"));
  EXPECT_EQ(budget.reserved(), 40U);
  EXPECT_TRUE(budget.reserve(10, {.made = 30, .draining = 20}, "x"));
  EXPECT_FALSE(budget.reserve(1, {.made = 30, .draining = 20}, "x"));
  EXPECT_TRUE(budget.reserve(0, {.made = 30, .draining = 20}, "x"));
  EXPECT_EQ(budget.reserved(), 50U);
  budget.unreserve(50);
  EXPECT_EQ(budget.reserved(), 0U);
  EXPECT_TRUE(budget.reserve(100, {}, "x"));
  EXPECT_FALSE(budget.reserve(1, {}, "x"));
}

TEST(BudgetTest, ARefusalCarriesEveryNumber) {
  Budget budget(100 * kGiB);
  ASSERT_TRUE(budget.reserve(5 * kGiB, {}, "other"));
  const auto refused = budget.reserve(30 * kGiB, {60 * kGiB, 10 * kGiB, 20 * kGiB, 40 * kGiB}, "'flux'");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kResourceExhausted);
  EXPECT_EQ(refused.error().details, (std::map<std::string, std::uint64_t>{{"needed", 30 * kGiB},
                                                                           {"limit", 100 * kGiB},
                                                                           {"available", 25 * kGiB},
                                                                           {"made", 60 * kGiB},
                                                                           {"reserved", 5 * kGiB},
                                                                           {"draining", 10 * kGiB},
                                                                           {"pinned", 20 * kGiB},
                                                                           {"leased", 40 * kGiB}}));
  for (const char* const part : {"'flux'", "needs 30.0 GiB", "25.0 GiB of the 100.0 GiB", "60.0 GiB resident",
                                 "20.0 GiB pinned", "40.0 GiB leased", "10.0 GiB draining", "5.0 GiB being loaded"}) {
    EXPECT_NE(refused.error().message.find(part), std::string::npos) << part << ": " << refused.error().message;
  }
  EXPECT_EQ(budget.reserved(), 5 * kGiB);
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
