// The whole life of a block, once with all that the kernel gives and once without each feature.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "tests/support/block_fixture.h"

namespace modelbroker {
namespace {

using testing::first_difference;
using testing::kMiB;

class BlockFeaturesTest : public testing::BlockFixture, public ::testing::WithParamInterface<std::string> {
 protected:
  BlockFeaturesTest() : BlockFixture(GetParam()) {}
};

TEST_P(BlockFeaturesTest, ABlockLivesItsLife) {
  std::uint64_t generation = 1;
  for (const std::uint64_t size : {std::uint64_t{0}, std::uint64_t{10'000}, 20 * kMiB + 5}) {
    Block block = make({.payload_size = size, .phase = 8, .generation = generation++});
    EXPECT_EQ(block.bytes_held(), block.header().layout.block_size);
    EXPECT_TRUE(os_->features().collapse || block.page_kind() == PageKind::kSmall);

    const auto adopted = adopt(block);
    ASSERT_TRUE(adopted) << adopted.error().message;
    EXPECT_TRUE(testing::verify(*os_, *adopted));
    for (const Access access : {Access::kReadOnly, Access::kPrivate}) {
      const auto mapped = view(block, access);
      ASSERT_TRUE(mapped) << mapped.error().message;
      EXPECT_EQ(first_difference(mapped->payload()), size);
    }
    ASSERT_TRUE(block.drain(*os_));
    ASSERT_TRUE(block.revive(*os_));
    EXPECT_EQ(os_->lstat(block.path())->st_nlink, 1U);
    ASSERT_TRUE(block.drain(*os_));
    ASSERT_TRUE(block.remove(*os_));
    EXPECT_TRUE(files().empty());
  }
}

TEST_P(BlockFeaturesTest, TheKernelIsAskedWhoHasItWhereItKnows) {
  const Block block = make();
  const auto alone = block.unmapped_everywhere(*os_);
  if (os_->features().write_lease) {
    EXPECT_TRUE(alone.value());
  } else {
    EXPECT_EQ(alone.error().code, ErrorCode::kUnimplemented);
  }
}

TEST_P(BlockFeaturesTest, NothingIsReplaced) {
  Block block = make();
  std::ofstream(block.path() + ".drain") << "in the way";
  EXPECT_EQ(block.drain(*os_).error().code, ErrorCode::kAlreadyExists);
  std::filesystem::remove(block.path() + ".drain");
  EXPECT_EQ(testing::make_block(*os_, *directory_).error().code, ErrorCode::kAlreadyExists);
  EXPECT_EQ(files(), std::vector<std::string>{block.id()});
  EXPECT_TRUE(adopt(block));
}

TEST_P(BlockFeaturesTest, OneOfManyRenamesWins) {
  for (int round = 0; round < 50; ++round) {
    std::atomic<int> won{0};
    std::atomic<bool> start{false};
    const auto race = [&](const std::string& from) {
      std::ofstream(folder_ / from) << from;
      start.wait(false);
      if (os_->rename_noreplace(folder_ / from, folder_ / "to")) ++won;
    };
    {
      const std::jthread one(race, "one");
      const std::jthread two(race, "two");
      start = true;
      start.notify_all();
    }
    EXPECT_EQ(won, 1);
    EXPECT_EQ(files().size(), 2U);
    for (const std::string& file : files()) std::filesystem::remove(folder_ / file);
  }
}

std::string name_of(const ::testing::TestParamInfo<std::string>& info) {
  return info.param.empty() ? "everything" : "without_" + info.param;
}

std::vector<std::string> each_feature() {
  std::vector<std::string> list{"", "all"};
  for (const auto& [name, member] : kFeatureNames) list.emplace_back(name);
  return list;
}

INSTANTIATE_TEST_SUITE_P(Each, BlockFeaturesTest, ::testing::ValuesIn(each_feature()), name_of);

}  // namespace
}  // namespace modelbroker
