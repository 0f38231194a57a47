// The Os on Linux, each way of each call: with the kernel's features and without.
#include "shm/os.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <thread>

#include "tests/support/child.h"
#include "tests/support/temp_directory.h"
#include "tests/support/watchdog.h"

namespace modelbroker {
namespace {

using testing::Child;
using testing::TempDirectory;
using testing::Watchdog;

class OsTest : public ::testing::Test {
 protected:
  // A file of `text`, open for reading and writing.
  Fd make_file(const std::string& name, std::string_view text = "") {
    auto fd = os_->open(folder_ / name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    EXPECT_TRUE(fd);
    EXPECT_EQ(::write(fd->get(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
    return std::move(*fd);
  }

  Watchdog watchdog_;
  TempDirectory folder_;
  const std::unique_ptr<Os> os_ = make_os({folder_.path(), ""});
};

// ---- features

TEST_F(OsTest, ProbesLeaveNothingBehind) { EXPECT_TRUE(std::filesystem::is_empty(folder_.path())); }

TEST_F(OsTest, EveryFeatureCanBeSwitchedOffAlone) {
  for (const auto& [off, member_off] : kFeatureNames) {
    const auto os = make_os({folder_.path(), std::string(off)});
    EXPECT_FALSE(os->features().*member_off) << off;
    for (const auto& [name, member] : kFeatureNames) {
      // Without its first page by populate_write there is nothing to collapse.
      if (name == off || (off == "populate_write" && name == "collapse")) continue;
      EXPECT_EQ(os->features().*member, os_->features().*member) << name << " without " << off;
    }
  }
}

TEST_F(OsTest, FeaturesCanBeSwitchedOffTogether) {
  const auto os = make_os({folder_.path(), "write_lease,collapse"});
  EXPECT_FALSE(os->features().write_lease);
  EXPECT_FALSE(os->features().collapse);
  EXPECT_EQ(os->features().populate_write, os_->features().populate_write);
  const auto none = make_os({folder_.path(), "all"});
  const auto plain = make_plain_os();
  for (const auto& [name, member] : kFeatureNames) {
    EXPECT_FALSE(none->features().*member) << name;
    EXPECT_FALSE(plain->features().*member) << name;
  }
}

TEST_F(OsTest, ProbesSayTheSameTwiceAndLeaveNothing) {
  const auto again = make_os({folder_.path(), ""});
  for (const auto& [name, member] : kFeatureNames) {
    EXPECT_EQ(again->features().*member, os_->features().*member) << name;
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder_.path()));
}

TEST_F(OsTest, AFolderThatIsNotThereHasNoFileFeatures) {
  const auto os = make_os({folder_ / "absent", ""});
  EXPECT_FALSE(os->features().collapse);
  EXPECT_FALSE(os->features().write_lease);
}

// ---- files

TEST_F(OsTest, OpensAndSaysWhyNot) {
  EXPECT_EQ(os_->open(folder_ / "absent", O_RDONLY, 0).error().number, ENOENT);
  const Fd fd = make_file("f", "hello");
  EXPECT_EQ(os_->open(folder_ / "f", O_RDWR | O_CREAT | O_EXCL, 0600).error().number, EEXIST);
  EXPECT_EQ(os_->fstat(fd.get())->st_size, 5);
  EXPECT_EQ(os_->fstat(-1).error().number, EBADF);
  EXPECT_EQ(os_->lstat(folder_ / "f")->st_size, 5);
  EXPECT_EQ(os_->lstat(folder_ / "absent").error().number, ENOENT);
  std::filesystem::create_symlink("f", folder_ / "link");
  EXPECT_TRUE(S_ISLNK(os_->lstat(folder_ / "link")->st_mode));
  EXPECT_EQ(os_->statfs(folder_.path())->f_type, TMPFS_MAGIC);
  EXPECT_EQ(os_->statfs(folder_ / "absent").error().number, ENOENT);
}

TEST_F(OsTest, MakesAndSealsMemoryFiles) {
  const Fd fd = os_->memory_file("sealed").value();
  EXPECT_EQ(os_->readlink(AT_FDCWD, "/proc/self/fd/" + std::to_string(fd.get())).value(), "/memfd:sealed (deleted)");
  ASSERT_TRUE(os_->ftruncate(fd.get(), 4096));
  EXPECT_EQ(os_->seals_of(fd.get()).value() & F_SEAL_SHRINK, 0);
  void* const mapped = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  EXPECT_EQ(os_->add_seals(fd.get(), F_SEAL_WRITE).error().number, EBUSY);
  ::munmap(mapped, 4096);
  ASSERT_TRUE(os_->add_seals(fd.get(), F_SEAL_WRITE | F_SEAL_SHRINK));
  EXPECT_EQ(os_->seals_of(fd.get()).value() & (F_SEAL_WRITE | F_SEAL_SHRINK), F_SEAL_WRITE | F_SEAL_SHRINK);
  EXPECT_EQ(os_->ftruncate(fd.get(), 0).error().number, EPERM);
  EXPECT_EQ(os_->add_seals(-1, F_SEAL_SEAL).error().number, EBADF);
  EXPECT_EQ(os_->seals_of(Fd(::open("/dev/null", O_RDWR | O_CLOEXEC)).get()).error().number, EINVAL);
}

TEST_F(OsTest, SizesAllocatesAndChangesModes) {
  const Fd fd = make_file("f");
  ASSERT_TRUE(os_->ftruncate(fd.get(), 1 << 20));
  EXPECT_EQ(os_->fstat(fd.get())->st_blocks, 0);
  ASSERT_TRUE(os_->fallocate(fd.get(), 0, 1 << 20));
  EXPECT_EQ(os_->fstat(fd.get())->st_blocks * 512, 1 << 20);
  EXPECT_EQ(os_->fallocate(-1, 0, 1).error().number, EBADF);
  EXPECT_FALSE(os_->ftruncate(-1, 0));
  ASSERT_TRUE(os_->fchmod(fd.get(), 0400));
  EXPECT_EQ(os_->fstat(fd.get())->st_mode & 0777U, 0400U);
  EXPECT_FALSE(os_->fchmod(-1, 0400));
}

TEST_F(OsTest, ReadsAtAnOffset) {
  const Fd fd = make_file("f", "hello");
  std::vector<std::byte> buffer(10);
  EXPECT_EQ(os_->pread(fd.get(), buffer, 1).value(), 4U);
  EXPECT_EQ(std::memcmp(buffer.data(), "ello", 4), 0);
  EXPECT_EQ(os_->pread(fd.get(), buffer, 5).value(), 0U);
  EXPECT_EQ(os_->pread(-1, buffer, 0).error().number, EBADF);
}

TEST_F(OsTest, MakesListsAndRemoves) {
  ASSERT_TRUE(os_->mkdir(folder_ / "d", 0700));
  EXPECT_EQ(os_->mkdir(folder_ / "d", 0700).error().number, EEXIST);
  make_file("f");
  auto names = os_->list_directory(folder_.path()).value();
  std::erase_if(names, [](const std::string& name) { return name == "." || name == ".."; });
  std::ranges::sort(names);
  EXPECT_EQ(names, (std::vector<std::string>{"d", "f"}));
  EXPECT_EQ(os_->list_directory(folder_ / "absent").error().number, ENOENT);
  EXPECT_TRUE(os_->unlink(folder_ / "f"));
  EXPECT_EQ(os_->unlink(folder_ / "f").error().number, ENOENT);
}

TEST_F(OsTest, ReadsSmallTexts) {
  make_file("f", "hello");
  EXPECT_EQ(os_->read_text(folder_ / "f").value(), "hello");
  EXPECT_EQ(os_->read_text("/proc/sys/kernel/random/boot_id")->size(), 37U);
  EXPECT_EQ(os_->read_text(folder_ / "absent").error().number, ENOENT);
  make_file("long", std::string(100'000, 'x'));
  EXPECT_EQ(os_->read_text(folder_ / "long")->size(), 65'536U);
}

TEST_F(OsTest, RenamesWithoutReplacingBothWays) {
  for (const std::string off : {"", "rename_noreplace"}) {
    const auto os = make_os({folder_.path(), off});
    make_file("a", "a");
    make_file("b", "b");
    EXPECT_EQ(os->rename_noreplace(folder_ / "a", folder_ / "b").error().number, EEXIST);
    EXPECT_EQ(os->read_text(folder_ / "b").value(), "b");
    EXPECT_TRUE(os->rename_noreplace(folder_ / "a", folder_ / "c"));
    EXPECT_EQ(os->read_text(folder_ / "c").value(), "a");
    EXPECT_EQ(os->lstat(folder_ / "c")->st_nlink, 1U);
    EXPECT_EQ(os->lstat(folder_ / "a").error().number, ENOENT);
    EXPECT_EQ(os->rename_noreplace(folder_ / "a", folder_ / "d").error().number, ENOENT);
    EXPECT_TRUE(os->unlink(folder_ / "b"));
    EXPECT_TRUE(os->unlink(folder_ / "c"));
  }
}

TEST_F(OsTest, ARenameThatCannotEndLeavesOneName) {
  // As an ordinary user, whoever runs the test: the old name's folder may not be written.
  Child child([&](const Child::Parent& parent) {
    if (::geteuid() == 0) {
      if (::chown(folder_.path().c_str(), 65534, 65534) != 0 || ::setresuid(65534, 65534, 65534) != 0) return 1;
    }
    const auto os = make_plain_os();
    if (!os->mkdir(folder_ / "from", 0700) || !os->mkdir(folder_ / "to", 0700)) return 2;
    if (!os->open(folder_ / "from/f", O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600)) return 3;
    if (::chmod((folder_ / "from").c_str(), 0500) != 0) return 4;
    const auto renamed = os->rename_noreplace(folder_ / "from/f", folder_ / "to/f");
    const auto kept = os->lstat(folder_ / "from/f");
    const bool undone =
        !renamed && renamed.error().number == EACCES && !os->lstat(folder_ / "to/f") && kept && kept->st_nlink == 1;
    ::chmod((folder_ / "from").c_str(), 0700);
    parent.say(undone ? "one name" : "not undone");
    return 0;
  });
  EXPECT_EQ(child.hear(), "one name");
  EXPECT_EQ(child.wait(), 0);
}

TEST_F(OsTest, CountsCachedBytesBothWays) {
  const Fd fd = make_file("f", std::string(20'000, 'x'));
  ASSERT_TRUE(os_->ftruncate(fd.get(), 1 << 20));
  for (const std::string off : {"", "cachestat"}) {
    const auto os = make_os({folder_.path(), off});
    EXPECT_EQ(os->cached_bytes(fd.get(), 0, 1 << 20).value(), 20'480U) << off;
    EXPECT_EQ(os->cached_bytes(fd.get(), 8192, 4096).value(), 4096U) << off;
    EXPECT_EQ(os->cached_bytes(fd.get(), 1 << 19, 4096).value(), 0U) << off;
    EXPECT_FALSE(os->cached_bytes(-1, 0, 4096)) << off;
  }
}

// ---- locks and leases

TEST_F(OsTest, LocksOnce) {
  const Fd one = make_file("lock");
  const Fd two = os_->open(folder_ / "lock", O_RDWR | O_CLOEXEC, 0).value();
  EXPECT_TRUE(os_->lock_exclusive(one.get()));
  EXPECT_TRUE(os_->lock_exclusive(one.get()));
  EXPECT_EQ(os_->lock_exclusive(two.get()).error().number, EWOULDBLOCK);
}

TEST_F(OsTest, AsksTheKernelWhoHasAFile) {
  if (!os_->features().write_lease) GTEST_SKIP() << "this kernel has no write leases here";
  make_file("f", "x");
  const Fd ours = os_->open(folder_ / "f", O_RDONLY | O_CLOEXEC, 0).value();
  EXPECT_TRUE(os_->nobody_else_has_it(ours.get()).value());
  {
    const Fd other = os_->open(folder_ / "f", O_RDONLY | O_CLOEXEC, 0).value();
    EXPECT_FALSE(os_->nobody_else_has_it(ours.get()).value());
  }
  EXPECT_TRUE(os_->nobody_else_has_it(ours.get()).value());
  // The lease was given back: an opener does not wait.
  EXPECT_TRUE(os_->open(folder_ / "f", O_RDONLY | O_CLOEXEC | O_NONBLOCK, 0));
  EXPECT_EQ(os_->nobody_else_has_it(-1).error().number, EBADF);
  EXPECT_EQ(make_plain_os()->nobody_else_has_it(ours.get()).error().number, EOPNOTSUPP);
}

TEST_F(OsTest, SaysWhetherAFileMayHaveAWriter) {
  if (!os_->features().write_lease) GTEST_SKIP() << "this kernel has no leases here";
  Fd writer = make_file("source");
  ASSERT_TRUE(os_->ftruncate(writer.get(), 4096));
  const Fd reader = os_->open(folder_ / "source", O_RDONLY | O_CLOEXEC, 0).value();
  EXPECT_TRUE(os_->may_have_writer(reader.get()));
  void* const mapped = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, writer.get(), 0);
  ASSERT_NE(mapped, MAP_FAILED);
  writer.reset();
  EXPECT_TRUE(os_->may_have_writer(reader.get()));  // by its mapping
  ::munmap(mapped, 4096);
  EXPECT_FALSE(os_->may_have_writer(reader.get()));
  EXPECT_TRUE(os_->may_have_writer(-1));  // nobody can say
}

// ---- address space

TEST_F(OsTest, ReservesAlignedAddresses) {
  for (const std::size_t size : {std::size_t{1}, std::size_t{4096}, std::size_t{4097}, std::size_t{10} << 20}) {
    void* const area = os_->reserve(size, 2 << 20).value();
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(area) % (2 << 20), 0U);
    os_->unreserve(area, size);
  }
  EXPECT_EQ(os_->reserve(SIZE_MAX, 4096).error().number, ENOMEM);
  EXPECT_EQ(os_->reserve(SIZE_MAX - (2 << 20), 2 << 20).error().number, ENOMEM);
}

TEST_F(OsTest, GivesBackAllThatItReserved) {
  const auto address_space = [&] { return std::stoull(os_->read_text("/proc/self/statm").value()) * 4096; };
  const std::uint64_t before = address_space();
  for (std::size_t i = 0; i < 500; ++i) {
    const std::size_t size = (std::size_t{8} << 20) + i * 777;  // sizes that are no multiples of a page, too
    void* const area = os_->reserve(size, 2 << 20).value();
    os_->unreserve(area, size);
  }
  EXPECT_LT(address_space(), before + (256U << 20));  // not 500 times 2 MiB
}

TEST_F(OsTest, AdvisesOrSaysWhyNot) {
  void* const area = os_->reserve(8192, 4096).value();
  EXPECT_TRUE(os_->advise(area, 8192, MADV_DONTDUMP));
  EXPECT_EQ(os_->advise(area, 8192, 12345).error().number, EINVAL);
  os_->unreserve(area, 8192);
}

// ---- pages of a file that is written through a mapping

// Those under writeback too, which were written again meanwhile: with a busy disk all are.
TEST_F(OsTest, AStoreIntoACleanedPageChangesTheTime) {
  constexpr std::size_t kSize = 8U << 20;
  const TempDirectory on_disk("/var/tmp");
  if (os_->statfs(on_disk.path())->f_type == TMPFS_MAGIC)
    GTEST_SKIP() << "/var/tmp is a tmpfs: nothing is written back";
  const Fd file = os_->open(on_disk / "mapped", O_RDWR | O_CREAT | O_CLOEXEC, 0600).value();
  ASSERT_EQ(::ftruncate(file.get(), kSize), 0);
  void* const area = ::mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
  ASSERT_NE(area, MAP_FAILED);
  const Fd other = os_->open(on_disk / "other", O_RDWR | O_CREAT | O_CLOEXEC, 0600).value();
  const std::string much(64U << 20, 'x');
  for (int round = 0; round < 4; ++round) {
    std::memset(area, round, kSize);
    ASSERT_EQ(::pwrite(other.get(), much.data(), much.size(), 0), static_cast<ssize_t>(much.size()));
    ::sync_file_range(other.get(), 0, 0, SYNC_FILE_RANGE_WRITE);  // the disk has work
    ::sync_file_range(file.get(), 0, 0, SYNC_FILE_RANGE_WRITE);
    std::memset(area, ~round, kSize);
    os_->clean_pages(file.get());
    struct stat before {};
    struct stat after {};
    ASSERT_EQ(::fstat(file.get(), &before), 0);
    std::this_thread::sleep_for(std::chrono::milliseconds(12));  // a tick of the file clock
    *static_cast<volatile char*>(area) = 1;
    ASSERT_EQ(::fstat(file.get(), &after), 0);
    ASSERT_NE(before.st_mtim.tv_nsec, after.st_mtim.tv_nsec) << round;
  }
  ::munmap(area, kSize);
}

// ---- the rest

TEST_F(OsTest, TellsTimeAndUser) {
  const std::uint64_t before = os_->boottime_ns();
  EXPECT_GT(before, 0U);
  EXPECT_GE(os_->boottime_ns(), before);
  EXPECT_EQ(os_->uid(), ::geteuid());
}

std::size_t open_descriptors(Os& os) { return os.list_directory("/proc/self/fd")->size(); }

TEST(FdTest, ClosesOnceAndMoves) {
  const auto os = make_plain_os();
  const std::size_t before = open_descriptors(*os);
  {
    Fd one = os->event_fd().value();
    Fd two = std::move(one);
    EXPECT_FALSE(one);  // NOLINT(bugprone-use-after-move): what it is after a move is the question
    EXPECT_TRUE(two);
    two = os->event_fd().value();
    one = std::move(two);
    const int number = one.release();
    EXPECT_FALSE(one);
    EXPECT_EQ(::close(number), 0);
  }
  EXPECT_EQ(open_descriptors(*os), before);
}

}  // namespace
}  // namespace modelbroker
