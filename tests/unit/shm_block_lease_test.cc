// The kernel's word on who still has a block: asked with other processes that hold it and die.
#include <gtest/gtest.h>
#include <poll.h>

#include "tests/support/block_fixture.h"
#include "tests/support/child.h"

namespace modelbroker {
namespace {

using testing::Child;
using testing::kMiB;

class BlockLeaseTest : public testing::BlockFixture {
 protected:
  void SetUp() override {
    BlockFixture::SetUp();
    if (!os_->features().write_lease) GTEST_SKIP() << "this kernel has no write leases here";
  }
  // A process that opens the block by its name, maps it, closes the descriptor and waits.
  [[nodiscard]] std::unique_ptr<Child> mapper(const Block& block, Access access) {
    auto child = std::make_unique<Child>([&](const Child::Parent& parent) {
      const auto mapped = view(block, access);
      parent.say(mapped ? "mapped" : mapped.error().message);
      parent.wait();
      return 0;
    });
    EXPECT_EQ(child->hear(), "mapped");
    return child;
  }
};

TEST_F(BlockLeaseTest, NobodyHasANewOrAdoptedBlock) {
  for (const std::uint64_t size : {std::uint64_t{10'000}, 5 * kMiB}) {
    const Block block = make({.payload_size = size, .generation = size});
    EXPECT_TRUE(block.unmapped_everywhere(*os_).value());
    EXPECT_TRUE(block.unmapped_everywhere(*os_).value());
  }
  std::unique_ptr<Block> adopted;
  {
    const Block block = make();
    adopted = std::make_unique<Block>(adopt(block).value());
    EXPECT_FALSE(block.unmapped_everywhere(*os_).value());  // two owners see each other
  }
  EXPECT_TRUE(adopted->unmapped_everywhere(*os_).value());
}

TEST_F(BlockLeaseTest, SeesDescriptorsAndMappingsOfItsOwnProcess) {
  const Block block = make({.payload_size = 5 * kMiB});
  {
    const Fd reader = block.open_for_reader(*os_).value();
    EXPECT_FALSE(block.unmapped_everywhere(*os_).value());
  }
  EXPECT_TRUE(block.unmapped_everywhere(*os_).value());
  for (const Access access : {Access::kReadOnly, Access::kPrivate}) {
    const auto mapped = view(block, access);
    ASSERT_TRUE(mapped);
    EXPECT_FALSE(block.unmapped_everywhere(*os_).value());
  }
  EXPECT_TRUE(block.unmapped_everywhere(*os_).value());
}

TEST_F(BlockLeaseTest, SeesAnotherProcessUntilItIsKilled) {
  std::uint64_t generation = 1;
  for (const std::uint64_t size : {std::uint64_t{10'000}, 5 * kMiB}) {
    for (const Access access : {Access::kReadOnly, Access::kPrivate}) {
      const Block block = make({.payload_size = size, .generation = generation++});
      const auto one = mapper(block, access);
      const auto two = mapper(block, access);
      EXPECT_FALSE(block.unmapped_everywhere(*os_).value());
      one->kill();
      EXPECT_FALSE(block.unmapped_everywhere(*os_).value());
      two->kill();
      EXPECT_TRUE(block.unmapped_everywhere(*os_).value());
    }
  }
}

TEST_F(BlockLeaseTest, SeesADrainingBlockUntilItsReaderEnds) {
  Block block = make({.payload_size = 5 * kMiB});
  const auto reader = mapper(block, Access::kPrivate);
  ASSERT_TRUE(block.drain(*os_));
  EXPECT_FALSE(block.unmapped_everywhere(*os_).value());
  reader->let_go();
  EXPECT_EQ(reader->wait(), 0);
  EXPECT_TRUE(block.unmapped_everywhere(*os_).value());
  EXPECT_TRUE(block.remove(*os_));
}

TEST_F(BlockLeaseTest, TheCloseEventSaysWhenToAsk) {
  const Block block = make({.payload_size = 5 * kMiB});
  const auto reader = mapper(block, Access::kReadOnly);
  const Fd inotify = os_->inotify_create().value();
  const int watch = os_->inotify_watch_close(inotify.get(), block.path()).value();
  reader->kill();
  pollfd poll{inotify.get(), POLLIN, 0};
  ASSERT_EQ(::poll(&poll, 1, 60'000), 1);
  EXPECT_EQ(os_->inotify_read(inotify.get()).value().front(), watch);
  EXPECT_TRUE(block.unmapped_everywhere(*os_).value());
}

TEST_F(BlockLeaseTest, AnOpenerAtThatMomentHarmsNobody) {
  const Block block = make();
  Child opener([&](const Child::Parent& parent) {
    parent.say("ready");
    for (int i = 0; i < 2000; ++i) {
      if (!block.open_for_reader(*os_)) return 1;
    }
    return 0;
  });
  ASSERT_EQ(opener.hear(), "ready");
  for (int i = 0; i < 2000; ++i) ASSERT_TRUE(block.unmapped_everywhere(*os_));
  EXPECT_EQ(opener.wait(), 0);
  EXPECT_TRUE(block.unmapped_everywhere(*os_).value());
}

}  // namespace
}  // namespace modelbroker
