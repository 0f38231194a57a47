// The blocks of the RAM tier: how they are found, what they cost, and what draining changes.
#include "broker/ram/ram_blocks.h"

#include <gtest/gtest.h>

#include "tests/support/block_fixture.h"
#include "tests/support/faulty_os.h"

namespace modelbroker {
namespace {

using Found = std::vector<RamBlock*>;

FileIdentity source(std::uint64_t number) { return {1, number, 10'000, 5, 6}; }

class RamBlocksTest : public testing::BlockFixture {
 protected:
  RamBlock& add(const FileIdentity& file, std::uint64_t payload_size = 10'000) {
    return add(blocks_, file, payload_size);
  }
  RamBlock& add(RamBlocks& blocks, const FileIdentity& file, std::uint64_t payload_size = 10'000) {
    RamBlock block(make({.payload_size = payload_size, .generation = ++generation_}));
    block.sources.push_back({"/models/" + std::to_string(generation_), file});
    return blocks.add(std::move(block));
  }

  RamBlocks blocks_{*os_};
  std::uint64_t generation_ = 0;
};

// ---- finding

TEST_F(RamBlocksTest, ASourceIsTheFileInExactlyThisState) {
  RamBlock& one = add(source(1));
  EXPECT_EQ(blocks_.find(one.id()), &one);
  EXPECT_EQ(blocks_.find("absent"), nullptr);
  EXPECT_EQ(blocks_.by_source(source(1)), &one);
  EXPECT_EQ(blocks_.alike(source(1)), Found{&one});
  for (FileIdentity other : {FileIdentity{1, 1, 10'000, 5, 7}, FileIdentity{2, 1, 10'000, 5, 6},
                             FileIdentity{1, 2, 10'000, 5, 6}, FileIdentity{8, 9, 10'000, 5, 7}}) {
    EXPECT_EQ(blocks_.by_source(other), nullptr);
    EXPECT_EQ(blocks_.alike(other), Found{&one});
  }
  for (FileIdentity other : {FileIdentity{1, 1, 10'001, 5, 6}, FileIdentity{1, 1, 10'000, 4, 6}}) {
    EXPECT_EQ(blocks_.by_source(other), nullptr);
    EXPECT_TRUE(blocks_.alike(other).empty());
  }
}

TEST_F(RamBlocksTest, WhatWasConfirmedIsKnownAtEachPathAsItWasLast) {
  const FileIdentity first{1, 1, 10'000, 5, 6}, second{1, 2, 10'000, 9, 6}, copy{2, 1, 10'000, 5, 6};
  RamBlock& one = add(first);
  blocks_.confirm(one, one.path(), second);
  EXPECT_EQ(blocks_.by_source(second), &one);
  EXPECT_EQ(blocks_.by_source(first), nullptr);
  EXPECT_TRUE(blocks_.alike(first).empty());
  blocks_.confirm(one, "/copy", first);
  blocks_.confirm(one, "/copy", copy);
  EXPECT_EQ(blocks_.by_source(second), &one);
  EXPECT_EQ(blocks_.by_source(copy), &one);
  EXPECT_EQ(blocks_.by_source(first), nullptr);
  EXPECT_TRUE(one.is_copy("/copy"));
  one.tell_by("/copy");
  EXPECT_FALSE(one.is_copy("/copy"));
  EXPECT_EQ(one.source(), copy);
  EXPECT_EQ(blocks_.by_source(second), &one);
  for (std::uint64_t i = 0; i < 100; ++i) blocks_.confirm(one, "/copy" + std::to_string(i), {9, i, 10'000, 5, 6});
  EXPECT_LE(one.sources.size(), 17U);
  EXPECT_EQ(blocks_.by_source(copy), &one);
}

TEST_F(RamBlocksTest, TheBestOfThoseAlikeComesFirst) {
  RamBlock& a = add(source(1));
  RamBlock& b = add(source(1));
  RamBlock& c = add(source(1));
  a.models = b.models = 1;
  ASSERT_TRUE(blocks_.drain(c));
  EXPECT_EQ(blocks_.alike(source(1)), (Found{&b, &a, &c}));
  b.models = 0;
  EXPECT_EQ(blocks_.alike(source(1)), (Found{&a, &b, &c}));
  a.damaged = true;
  EXPECT_EQ(blocks_.alike(source(1)), (Found{&b, &c}));
  blocks_.erase(b.id());
  EXPECT_EQ(blocks_.alike(source(1)), Found{&c});
}

TEST_F(RamBlocksTest, ASourceIsFoundResidentBeforeDrainingAndNotWhileItIsRemoved) {
  RamBlock& draining = add(source(1));
  RamBlock& resident = add(source(1));
  RamBlock& newest = add(source(1));
  EXPECT_EQ(blocks_.by_source(source(1)), &newest);
  ASSERT_TRUE(blocks_.drain(newest));
  EXPECT_EQ(blocks_.by_source(source(1)), &resident);
  ASSERT_TRUE(blocks_.drain(resident));
  ASSERT_TRUE(blocks_.drain(draining));
  EXPECT_EQ(blocks_.by_source(source(1)), &newest);
  newest.removing = true;
  EXPECT_EQ(blocks_.by_source(source(1)), &resident);
  resident.removing = draining.removing = true;
  EXPECT_EQ(blocks_.by_source(source(1)), nullptr);
}

// ---- draining

TEST_F(RamBlocksTest, ADrainingBlockHasAnotherFileNameUntilItIsRevived) {
  RamBlock& one = add(source(1));
  const std::string id = one.id();
  ASSERT_TRUE(blocks_.drain(one));
  EXPECT_TRUE(one.draining());
  EXPECT_EQ(blocks_.find(id), &one);
  EXPECT_EQ(files(), std::vector<std::string>{id + ".drain"});
  EXPECT_TRUE(blocks_.drain(one));  // again changes nothing
  ASSERT_TRUE(blocks_.revive(one));
  EXPECT_FALSE(one.draining());
  EXPECT_EQ(files(), std::vector<std::string>{id});
}

TEST_F(RamBlocksTest, AFailedRenameKeepsWhatWas) {
  testing::FaultyOs faulty(*os_);
  RamBlocks blocks(faulty);
  RamBlock& one = add(blocks, source(1));
  faulty.fail_at(1, EACCES);
  EXPECT_EQ(blocks.drain(one).error().code, ErrorCode::kPermissionDenied);
  EXPECT_FALSE(one.draining() || one.damaged);
  EXPECT_EQ(files(), std::vector<std::string>{one.id()});
  ASSERT_TRUE(blocks.drain(one));
  faulty.fail_at(1, EACCES);
  EXPECT_EQ(blocks.revive(one).error().code, ErrorCode::kPermissionDenied);
  EXPECT_TRUE(one.draining());
  EXPECT_EQ(files(), std::vector<std::string>{one.id() + ".drain"});
}

TEST_F(RamBlocksTest, ErasingForgetsTheBlockAndTouchesNoFile) {
  RamBlock& one = add(source(1));
  const std::string id = one.id();
  blocks_.erase(id);
  EXPECT_TRUE(blocks_.all().empty());
  EXPECT_EQ(blocks_.by_source(source(1)), nullptr);
  EXPECT_EQ(files(), std::vector<std::string>{id});
  blocks_.erase(id);
}

// ---- counting

TEST_F(RamBlocksTest, TotalsAreWhatTheKernelCounts) {
  EXPECT_EQ(blocks_.totals().made, 0U);
  RamBlock& small = add(source(1), 10'000);
  RamBlock& large = add(source(2), 5 * testing::kMiB);
  EXPECT_EQ(blocks_.totals().made, small.block->bytes_held() + large.block->bytes_held());
  EXPECT_EQ(blocks_.totals().draining, 0U);
  ASSERT_TRUE(blocks_.drain(large));
  large.removing = true;
  const RamBlocks::Totals totals = blocks_.totals();
  EXPECT_EQ(totals.made, small.bytes());
  EXPECT_EQ(totals.draining, large.bytes());
  EXPECT_EQ(totals.removing, large.bytes());
}

}  // namespace
}  // namespace modelbroker
