// A published block looked at again: what is damaged is found and named, and the look stands in nobody's way.
#include <gtest/gtest.h>

#include <cerrno>
#include <thread>

#include "tests/support/block_fixture.h"
#include "tests/support/faulty_os.h"

namespace modelbroker {
namespace {

using testing::kMiB;

class BlockCheckTest : public testing::BlockFixture {
 protected:
  [[nodiscard]] Result<void> check(Os& os, const Block& block) const {
    MODELBROKER_ASSIGN(const ChunkHashes hashes, block.check_contents(os));
    for (std::uint32_t i = 0; i < hashes.size(); ++i) {
      MODELBROKER_TRY(block.check_chunk(os, i, hashes[i], stop_));
    }
    return {};
  }
  std::atomic<bool> stop_ = false;
};

TEST_F(BlockCheckTest, EachBlockIsAsItWasPublished) {
  std::uint64_t generation = 0;
  for (const std::uint64_t size : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{10'000}, 5 * kMiB, 33 * kMiB}) {
    const Block block = make({.payload_size = size, .phase = 100, .generation = ++generation});
    const auto hashes = block.check_contents(*os_);
    ASSERT_TRUE(hashes) << hashes.error().message;
    EXPECT_EQ(*hashes, block.chunk_hashes(*os_).value());
    EXPECT_TRUE(check(*os_, block));
    EXPECT_EQ(block.bytes_held(), testing::BlockFixture::adopt(block)->bytes_held());  // no page was made
  }
}

TEST_F(BlockCheckTest, ADamagedChunkIsNamedWithItsPlace) {
  const Block block = make({.payload_size = 40 * kMiB});
  const BlockLayout& layout = block.header().layout;
  const ChunkHashes hashes = block.check_contents(*os_).value();
  for (const std::uint64_t at : {std::uint64_t{0}, 16 * kMiB - 1, 16 * kMiB, 40 * kMiB - 1}) {
    flip(block.path(), (layout.payload.offset + at) * 8 + 3);
    const std::uint64_t wrong = at / kChunkSize;
    for (std::uint32_t i = 0; i < hashes.size(); ++i) {
      const auto checked = block.check_chunk(*os_, i, hashes[i], stop_);
      ASSERT_EQ(checked.has_value(), i != wrong) << at << " " << i;
      if (checked) continue;
      EXPECT_EQ(checked.error().code, ErrorCode::kDataLoss);
      EXPECT_EQ(checked.error().details.at("chunk"), wrong);
      EXPECT_EQ(checked.error().details.at("offset"), layout.chunk(i).offset);
    }
    EXPECT_FALSE(testing::verify(*os_, block));
    flip(block.path(), (layout.payload.offset + at) * 8 + 3);
  }
  EXPECT_TRUE(testing::verify(*os_, block));
}

TEST_F(BlockCheckTest, HeaderManifestAndTableAreNamedByTheirOffset) {
  const Block block = make();
  const BlockLayout& layout = block.header().layout;
  for (const std::uint64_t at : {std::uint64_t{16}, layout.manifest.offset, layout.chunk_table.offset}) {
    flip(block.path(), at * 8);
    const auto checked = block.check_contents(*os_);
    ASSERT_FALSE(checked);
    EXPECT_EQ(checked.error().code, ErrorCode::kDataLoss);
    EXPECT_EQ(checked.error().details.at("offset"), at < kPage ? 0 : at);
    EXPECT_FALSE(checked.error().details.contains("chunk"));
    flip(block.path(), at * 8);
    EXPECT_TRUE(block.check_contents(*os_));
  }
}

TEST_F(BlockCheckTest, MemoryThatCannotBeReadIsDamageAndOtherTroubleIsNot) {
  const Block block = make({.payload_size = 5 * kMiB});
  const ChunkHashes hashes = block.check_contents(*os_).value();
  testing::FaultyOs faulty(*os_);
  faulty.fail_at(2, EIO);
  const auto broken = block.check_chunk(faulty, 0, hashes[0], stop_);
  ASSERT_FALSE(broken);
  EXPECT_EQ(broken.error().code, ErrorCode::kDataLoss);
  EXPECT_EQ(broken.error().details.at("chunk"), 0U);
  EXPECT_GT(broken.error().details.at("offset"), block.header().layout.payload.offset);
  faulty.fail_at(2, ENOMEM);
  const auto busy = block.check_chunk(faulty, 0, hashes[0], stop_);
  ASSERT_FALSE(busy);
  EXPECT_NE(busy.error().code, ErrorCode::kDataLoss);
}

TEST_F(BlockCheckTest, EndsWhenItIsToldToOrTheBlockIsFreed) {
  Block block = make({.payload_size = 5 * kMiB});
  const ChunkHashes hashes = block.check_contents(*os_).value();
  stop_ = true;
  EXPECT_EQ(block.check_chunk(*os_, 0, hashes[0], stop_).error().code, ErrorCode::kCancelled);
  stop_ = false;
  ASSERT_TRUE(block.remove(*os_));
  EXPECT_EQ(block.check_chunk(*os_, 0, hashes[0], stop_).error().code, ErrorCode::kCancelled);
  EXPECT_EQ(block.check_contents(*os_).error().code, ErrorCode::kCancelled);
}

TEST_F(BlockCheckTest, MeanwhileItIsRenamedAskedForAndRemoved) {
  for (std::uint64_t round = 1; round <= 20; ++round) {
    Block block = make({.payload_size = 5 * kMiB, .generation = round});
    std::atomic<bool> begun = false;
    std::thread checker([&] {
      while (true) {
        const auto checked = check(*os_, block);
        begun = true;
        if (checked) continue;
        EXPECT_EQ(checked.error().code, ErrorCode::kCancelled) << checked.error().message;
        return;
      }
    });
    while (!begun) std::this_thread::yield();
    EXPECT_TRUE(block.drain(*os_));
    EXPECT_TRUE(block.revive(*os_));
    EXPECT_TRUE(block.drain(*os_));
    // The kernel does not take the checker for a holder.
    if (os_->features().write_lease) {
      for (int i = 0; i < 100; ++i) ASSERT_TRUE(block.unmapped_everywhere(*os_).value());
    }
    EXPECT_TRUE(block.remove(*os_));
    checker.join();
    EXPECT_TRUE(files().empty());
  }
}

}  // namespace
}  // namespace modelbroker
