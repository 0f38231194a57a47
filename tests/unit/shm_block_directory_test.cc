#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "shm/block.h"
#include "tests/support/child.h"
#include "tests/support/faulty_os.h"
#include "tests/support/temp_directory.h"
#include "tests/support/watchdog.h"

namespace modelbroker {
namespace {

using testing::Child;
using testing::TempDirectory;
namespace fs = std::filesystem;

class BlockDirectoryTest : public ::testing::Test {
 protected:
  [[nodiscard]] Result<BlockDirectory> lock(const std::string& instance = "default") {
    return BlockDirectory::lock(*os_, folder_.path(), instance);
  }
  [[nodiscard]] std::string lock_path() const { return folder_ / lock_file_name(os_->uid(), "default"); }
  [[nodiscard]] BlockName name(std::uint64_t generation, BlockState state = BlockState::kPublished) const {
    return {os_->uid(), "default", "0123456789abcdef", generation, state};
  }
  void touch(const std::string& file_name, std::string_view text = "") const {
    std::ofstream(folder_ / file_name) << text;
  }

  testing::Watchdog watchdog_;
  TempDirectory folder_;
  const std::unique_ptr<Os> os_ = make_plain_os();
};

// ---- lock

TEST_F(BlockDirectoryTest, LocksAFolderForItsInstance) {
  const auto directory = lock();
  ASSERT_TRUE(directory) << directory.error().message;
  EXPECT_EQ(directory->path(), folder_.path());
  EXPECT_EQ(directory->uid(), os_->uid());
  EXPECT_EQ(directory->path_of(name(7)), folder_ / name(7).file_name());
  const auto file = os_->lstat(lock_path()).value();
  EXPECT_EQ(file.st_mode & 07777U, 0600U);

  const auto second = lock();
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, ErrorCode::kFailedPrecondition);
  EXPECT_NE(second.error().message.find("another broker (instance 'default')"), std::string::npos);
  EXPECT_NE(second.error().message.find("--instance"), std::string::npos);
  EXPECT_TRUE(lock("other"));
}

TEST_F(BlockDirectoryTest, TheLockEndsWithItsHolderAndTheFileStays) {
  { EXPECT_TRUE(lock()); }
  EXPECT_TRUE(fs::exists(lock_path()));
  EXPECT_TRUE(lock());
  Child child([&](const Child::Parent& parent) {
    const auto directory = lock();
    parent.say(directory ? "locked" : directory.error().message);
    parent.wait();
    return 0;
  });
  ASSERT_EQ(child.hear(), "locked");
  EXPECT_EQ(lock().error().code, ErrorCode::kFailedPrecondition);
  child.kill();
  EXPECT_TRUE(lock());
}

TEST_F(BlockDirectoryTest, TrailingSlashesAreDropped) {
  const auto directory = BlockDirectory::lock(*os_, folder_.path() + "//", "default");
  ASSERT_TRUE(directory);
  EXPECT_EQ(directory->path(), folder_.path());
}

TEST_F(BlockDirectoryTest, RefusesABadInstance) {
  for (const char* const bad : {"", "A", "a/b", "a.b", "..", "abcdefghijklmnopqrstuvwxyz0123456"}) {
    EXPECT_EQ(lock(bad).error().code, ErrorCode::kInvalidArgument) << bad;
  }
}

TEST_F(BlockDirectoryTest, RefusesWhatIsNoFolder) {
  EXPECT_EQ(BlockDirectory::lock(*os_, folder_ / "absent", "default").error().code, ErrorCode::kNotFound);
  EXPECT_EQ(BlockDirectory::lock(*os_, folder_ / "absent", "default", true).error().code, ErrorCode::kNotFound);
  touch("file");
  EXPECT_EQ(BlockDirectory::lock(*os_, folder_ / "file", "default").error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(BlockDirectory::lock(*os_, "", "default").error().code, ErrorCode::kNotFound);
}

TEST_F(BlockDirectoryTest, WantsATmpfsUnlessForced) {
  // /proc is certainly none, and nothing can be made there.
  const auto refused = BlockDirectory::lock(*os_, "/proc", "default");
  EXPECT_EQ(refused.error().code, ErrorCode::kFailedPrecondition);
  EXPECT_NE(refused.error().message.find("not on a tmpfs"), std::string::npos);
  const auto forced = BlockDirectory::lock(*os_, "/proc", "default", true);
  ASSERT_FALSE(forced);
  EXPECT_EQ(forced.error().message.find("not on a tmpfs"), std::string::npos);
  EXPECT_TRUE(BlockDirectory::lock(*os_, folder_.path(), "default", true));
}

TEST_F(BlockDirectoryTest, RefusesALockThatIsNotAPlainFileOfOurs) {
  touch("elsewhere");
  fs::create_symlink(folder_ / "elsewhere", lock_path());
  EXPECT_EQ(lock().error().code, ErrorCode::kFailedPrecondition);
  fs::remove(lock_path());

  fs::create_hard_link(folder_ / "elsewhere", lock_path());
  EXPECT_EQ(lock().error().code, ErrorCode::kFailedPrecondition);
  fs::remove(lock_path());

  ASSERT_EQ(::mkfifo(lock_path().c_str(), 0600), 0);
  EXPECT_EQ(lock().error().code, ErrorCode::kFailedPrecondition);
  fs::remove(lock_path());

  fs::create_directory(lock_path());
  EXPECT_FALSE(lock());
  fs::remove(lock_path());
  EXPECT_TRUE(lock());
}

TEST_F(BlockDirectoryTest, RefusesALockOfAnotherUser) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can make a file of another user";
  touch(lock_file_name(0, "default"));
  ASSERT_EQ(::chown(lock_path().c_str(), 12345, 12345), 0);
  EXPECT_FALSE(lock());
}

// ---- list

TEST_F(BlockDirectoryTest, ListsItsOwnBlocksInEveryState) {
  const auto directory = lock().value();
  EXPECT_TRUE(directory.list(*os_)->blocks.empty());
  touch(name(1).file_name());
  touch(name(2, BlockState::kDraining).file_name());
  touch(name(3, BlockState::kTemporary).file_name());
  BlockName other = name(4);
  other.instance = "other";
  touch(other.file_name());
  other = name(5);
  other.uid += 1;
  touch(other.file_name());
  touch("unrelated");
  touch(name(6).file_name() + ".bak");
  auto listing = directory.list(*os_).value();
  std::ranges::sort(listing.blocks, {}, &BlockName::generation);
  ASSERT_EQ(listing.blocks.size(), 3U);
  EXPECT_EQ(listing.blocks[0].state, BlockState::kPublished);
  EXPECT_EQ(listing.blocks[1].state, BlockState::kDraining);
  EXPECT_EQ(listing.blocks[2].state, BlockState::kTemporary);
  EXPECT_TRUE(listing.foreign.empty());
}

TEST_F(BlockDirectoryTest, ReportsWhatOnlyLooksLikeABlock) {
  const auto directory = lock().value();
  touch("target");
  fs::create_symlink(folder_ / "target", folder_ / name(1).file_name());
  fs::create_hard_link(folder_ / "target", folder_ / name(2).file_name());
  fs::create_directory(folder_ / name(3).file_name());
  ASSERT_EQ(::mkfifo((folder_ / name(4).file_name()).c_str(), 0600), 0);
  std::size_t foreign = 4;
  if (::geteuid() == 0) {
    touch(name(5).file_name());
    ASSERT_EQ(::chown((folder_ / name(5).file_name()).c_str(), 12345, 12345), 0);
    ++foreign;
  }
  const auto listing = directory.list(*os_).value();
  EXPECT_TRUE(listing.blocks.empty());
  EXPECT_EQ(listing.foreign.size(), foreign);
  for (std::uint64_t i = 1; i <= foreign; ++i) {
    EXPECT_EQ(directory.remove(*os_, name(i)).error().code, ErrorCode::kFailedPrecondition) << i;
    EXPECT_TRUE(fs::exists(fs::symlink_status(folder_ / name(i).file_name()))) << i;
  }
}

TEST_F(BlockDirectoryTest, OneFileUnderTwoOfOurNamesIsOneBlock) {
  const auto directory = lock().value();
  BlockName temporary = directory.temporary(1);
  touch(name(1).file_name());
  fs::create_hard_link(folder_ / name(1).file_name(), folder_ / temporary.file_name());
  touch(name(2, BlockState::kDraining).file_name());
  fs::create_hard_link(folder_ / name(2, BlockState::kDraining).file_name(), folder_ / name(2).file_name());
  touch(name(3).file_name(), "a copy is");
  touch(name(3, BlockState::kDraining).file_name(), "another file");
  auto listing = directory.list(*os_).value();
  EXPECT_TRUE(listing.foreign.empty());
  ASSERT_EQ(listing.blocks.size(), 3U);
  for (const BlockName& block : listing.blocks) EXPECT_EQ(block.state, BlockState::kPublished);
  ASSERT_EQ(listing.doubles.size(), 3U);
  for (const BlockName& one : listing.doubles) {
    EXPECT_NE(one.state, BlockState::kPublished);
    EXPECT_TRUE(directory.remove_double(*os_, one));
    EXPECT_TRUE(directory.remove_double(*os_, one));  // gone already
  }
  listing = directory.list(*os_).value();
  EXPECT_EQ(listing.blocks.size(), 3U);
  EXPECT_TRUE(listing.doubles.empty());
  for (const BlockName& block : listing.blocks) EXPECT_TRUE(directory.remove(*os_, block));
}

TEST_F(BlockDirectoryTest, AThirdNameElsewhereIsNotOurs) {
  const auto directory = lock().value();
  touch(name(1).file_name());
  for (const std::string& other : {name(1, BlockState::kDraining).file_name(), std::string("elsewhere")}) {
    fs::create_hard_link(folder_ / name(1).file_name(), folder_ / other);
  }
  const auto listing = directory.list(*os_).value();
  EXPECT_TRUE(listing.blocks.empty() && listing.doubles.empty());
  EXPECT_EQ(listing.foreign.size(), 2U);
}

TEST_F(BlockDirectoryTest, ListingSaysWhenItCouldNotLook) {
  const auto directory = lock().value();
  touch(name(1).file_name());
  testing::FaultyOs faulty(*os_);
  faulty.fail_at(1, EIO);
  EXPECT_EQ(directory.list(faulty).error().code, ErrorCode::kDataLoss);
  faulty.fail_at(2, EACCES);
  EXPECT_EQ(directory.list(faulty).error().code, ErrorCode::kPermissionDenied);
  faulty.fail_at(2, ENOENT);  // gone between readdir and lstat
  EXPECT_TRUE(directory.list(faulty)->blocks.empty());
}

// ---- remove

TEST_F(BlockDirectoryTest, RemovesAndTellsTheBytes) {
  const auto directory = lock().value();
  touch(name(1, BlockState::kTemporary).file_name(), std::string(5000, 'x'));
  EXPECT_EQ(directory.remove(*os_, name(1, BlockState::kTemporary)).value(), 8192U);
  EXPECT_EQ(directory.remove(*os_, name(1, BlockState::kTemporary)).error().code, ErrorCode::kNotFound);
  EXPECT_TRUE(directory.list(*os_)->blocks.empty());
}

}  // namespace
}  // namespace modelbroker
