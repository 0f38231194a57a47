// Is the file still what the block holds? Asked where only its ctime says that it may not be.
#include <gtest/gtest.h>

#include <atomic>
#include <optional>

#include "broker/ram/loader.h"
#include "tests/support/hooked_os.h"
#include "tests/support/source_fixture.h"

namespace modelbroker {
namespace {

using testing::kMiB;

constexpr std::uint64_t kSize = 33 * kMiB + 5;  // three chunks

class SameBytesTest : public testing::SourceFixture {
 protected:
  void load(std::uint64_t size = kSize, std::uint64_t phase = 1000) {
    write_source(size, phase);
    LoadSettings settings;
    settings.generation = 1;
    const auto plan = plan_load(directory_of_source(), {"first", "", source_, source_});
    ASSERT_TRUE(plan) << plan.error().message;
    auto block = load_block(*os_, *directory_, testing::open_source(source_).get(), *plan, settings, progress_);
    ASSERT_TRUE(block) << block.error().message;
    block_.emplace(std::move(block->block));
  }
  [[nodiscard]] Result<bool> same(Os& os) {
    const Fd file = testing::open_source(source_);
    return same_bytes(os, file.get(), directory_of_source(), *block_, progress_);
  }
  [[nodiscard]] std::uint64_t payload_offset() const { return directory_of_source().payload.offset; }

  LoadProgress progress_;
  std::optional<Block> block_;
};

TEST_F(SameBytesTest, AFileOfWhichOnlyTheCtimeChangedIsTheSame) {
  load();
  const FileIdentity before = directory_of_source().source;
  touch_ctime_of_source();
  ASSERT_NE(directory_of_source().source, before);
  ASSERT_TRUE(directory_of_source().source.same_but_ctime(before));
  EXPECT_EQ(same(*os_).value(), true);
  forget_source();
  EXPECT_EQ(same(*os_).value(), true);
}

TEST_F(SameBytesTest, EmptyAndSmallPayloadsAreCompared) {
  for (const std::uint64_t size : {std::uint64_t{0}, std::uint64_t{1}, 2 * kMiB, kChunkSize}) {
    load(size);
    EXPECT_EQ(same(*os_).value(), true) << size;
    if (size > 0) {
      overwrite_source(payload_offset() + size - 1, "!");
      EXPECT_EQ(same(*os_).value(), false) << size;
    }
    ASSERT_TRUE(block_->remove(*os_));
  }
}

TEST_F(SameBytesTest, OneChangedByteAnywhereIsAnotherFile) {
  load();
  for (const std::uint64_t at : {std::uint64_t{0}, kChunkSize - 1000, kChunkSize - 1001, 20 * kMiB, kSize - 1}) {
    const auto was = static_cast<char>(testing::payload_byte(at));
    const auto other = static_cast<char>(was ^ 1);
    overwrite_source(payload_offset() + at, {&other, 1});
    age_source();  // its mtime says nothing
    EXPECT_EQ(same(*os_).value(), false) << at;
    overwrite_source(payload_offset() + at, {&was, 1});
    EXPECT_EQ(same(*os_).value(), true) << at;
  }
}

TEST_F(SameBytesTest, TheHeadersPaddingDoesNotCountAndItsContentDoes) {
  load(kSize, 1000);
  write_source(kSize, 2008);
  EXPECT_EQ(same(*os_).value(), true);
  write_source(kSize, 1000, "np");
  EXPECT_EQ(same(*os_).value(), false);
  write_source(kSize - 1, 1000);
  EXPECT_EQ(same(*os_).value(), false);
  write_source(kSize + 1, 1000);
  EXPECT_EQ(same(*os_).value(), false);
}

TEST_F(SameBytesTest, AFileThatChangesMeanwhileIsDataLoss) {
  load();
  testing::HookedOs hooked(*os_);
  std::atomic<int> reads{0};
  hooked.on_pread = [&](int fd, std::span<std::byte> into, std::uint64_t offset) {
    if (++reads == 5) std::filesystem::resize_file(source_, kSize + 100'000);
    return os_->pread(fd, into, offset);
  };
  const auto grown = same(hooked);
  ASSERT_FALSE(grown);
  EXPECT_EQ(grown.error().code, ErrorCode::kDataLoss);
  EXPECT_NE(grown.error().message.find(source_), std::string::npos) << grown.error().message;
}

TEST_F(SameBytesTest, ItMayBeCancelled) {
  load();
  progress_.cancelled = true;
  EXPECT_EQ(same(*os_).error().code, ErrorCode::kCancelled);
}

TEST_F(SameBytesTest, AFailedReadIsATypedError) {
  load();
  testing::HookedOs hooked(*os_);
  hooked.on_pread = [&](int, std::span<std::byte>, std::uint64_t) -> SysResult<std::size_t> {
    return tl::unexpected(Errno{EIO});
  };
  EXPECT_EQ(same(hooked).error().code, ErrorCode::kDataLoss);
}

}  // namespace
}  // namespace modelbroker
