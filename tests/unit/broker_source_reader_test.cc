// Bytes of a file into memory: through the page cache, past it, and where the one way gives up.
#include "broker/ram/source_reader.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "tests/support/faulty_os.h"
#include "tests/support/hooked_os.h"
#include "tests/support/source_fixture.h"

namespace modelbroker {
namespace {

constexpr std::uint64_t kSize = 5 * kPage + 77;

bool is_direct(int fd) { return (::fcntl(fd, F_GETFL) & O_DIRECT) != 0; }

class SourceReaderTest : public testing::SourceFixture {
 protected:
  void SetUp() override {
    SourceFixture::SetUp();
    std::string bytes(kSize, '\0');
    for (std::uint64_t i = 0; i < kSize; ++i) bytes[i] = static_cast<char>(testing::payload_byte(i));
    testing::write_file(source_, bytes);
    file_ = testing::open_source(source_);
    ASSERT_TRUE(file_);
    // Counts the reads, and which way they went.
    hooked_.on_pread = [this](int fd, std::span<std::byte> into, std::uint64_t offset) {
      ++(is_direct(fd) ? direct_reads_ : buffered_reads_);
      return os_->pread(fd, into, offset);
    };
  }

  // Reads [offset, offset + size) to an address that lies in its page as the range in the file, plus `shift`.
  void expect_reads(SourceReader& reader, std::uint64_t offset, std::uint64_t size, std::uint64_t shift = 0) {
    const std::span<std::byte> into = place(offset + shift, size);
    const auto done = reader.read(into, offset, true);
    ASSERT_TRUE(done) << done.error().message;
    for (std::uint64_t i = 0; i < size; ++i) ASSERT_EQ(into[i], testing::payload_byte(offset + i)) << offset + i;
    const auto outside = static_cast<std::size_t>(into.data() - memory_.data());
    for (std::size_t i = 0; i < outside; ++i) ASSERT_EQ(memory_[i], std::byte{0xEE});
    for (std::size_t i = outside + size; i < memory_.size(); ++i) ASSERT_EQ(memory_[i], std::byte{0xEE});
  }
  std::span<std::byte> place(std::uint64_t offset, std::uint64_t size) {
    std::fill(memory_.begin(), memory_.end(), std::byte{0xEE});
    const std::uint64_t address = round_up(reinterpret_cast<std::uintptr_t>(memory_.data()), kPage);
    const auto begin = static_cast<std::size_t>(address - reinterpret_cast<std::uintptr_t>(memory_.data()));
    return std::span(memory_).subspan(begin + offset % kPage, size);
  }

  Fd file_;
  testing::HookedOs hooked_{*os_};
  std::atomic<int> direct_reads_{0}, buffered_reads_{0};
  std::vector<std::byte> memory_ = std::vector<std::byte>(9 * kPage);
};

TEST_F(SourceReaderTest, ReadsEveryRangeToItsLastByte) {
  for (const bool direct_io : {true, false}) {
    const auto os = make_os({folder_.path(), direct_io ? "" : "direct_io"});
    SourceReader reader(*os, file_.get(), "label");
    for (const std::uint64_t offset : {std::uint64_t{0}, std::uint64_t{1}, kPage - 1, kPage, kPage + 5, 5 * kPage}) {
      for (const std::uint64_t size :
           {std::uint64_t{0}, std::uint64_t{1}, kPage - 1, kPage, kPage + 1, 2 * kPage + 3}) {
        if (offset + size <= kSize) expect_reads(reader, offset, size);
      }
      expect_reads(reader, offset, kSize - offset);
      expect_reads(reader, offset, kSize - offset, 1);
    }
  }
}

TEST_F(SourceReaderTest, OnlyWholePagesInStepGoPastTheCache) {
  SourceReader reader(hooked_, file_.get(), "label");
  expect_reads(reader, 5, 100);
  EXPECT_EQ(direct_reads_, 0);  // no whole page in it
  expect_reads(reader, 0, 3 * kPage, 8);
  EXPECT_EQ(direct_reads_, 0);  // memory out of step
  expect_reads(reader, 5, 3 * kPage);
  if (direct_reads_ == 0) GTEST_SKIP() << "this file system has no direct reads";
  EXPECT_EQ(buffered_reads_, 4);         // one, one, and the first and last parts of pages
  EXPECT_FALSE(is_direct(file_.get()));  // the caller's own description is left as it was
}

TEST_F(SourceReaderTest, ADirectReadThatIsRefusedIsTriedTheOtherWayAndNeverAgain) {
  for (const int error : {EINVAL, EOPNOTSUPP}) {
    direct_reads_ = 0;
    hooked_.on_pread = [&](int fd, std::span<std::byte> into, std::uint64_t offset) -> SysResult<std::size_t> {
      if (!is_direct(fd)) return os_->pread(fd, into, offset);
      ++direct_reads_;
      return tl::unexpected(Errno{error});
    };
    SourceReader reader(hooked_, file_.get(), "label");
    expect_reads(reader, 0, kSize);
    EXPECT_LE(direct_reads_, 1);
    expect_reads(reader, kPage, 2 * kPage);
    EXPECT_LE(direct_reads_, 1);
    EXPECT_FALSE(reader.cold(0, kSize));  // nothing to be won by asking
  }
}

TEST_F(SourceReaderTest, AFileSystemWithoutDirectReadsIsReadThroughTheCache) {
  testing::FaultyOs faulty(hooked_);
  faulty.fail_at(1, EINVAL);  // the open with O_DIRECT
  SourceReader reader(faulty, file_.get(), "label");
  ASSERT_TRUE(faulty.failed_one());
  expect_reads(reader, 0, kSize);
  EXPECT_EQ(direct_reads_, 0);
  EXPECT_FALSE(reader.cold(0, kSize));
}

TEST_F(SourceReaderTest, ShortReadsAreContinued) {
  for (const std::size_t most : {std::size_t{1000}, std::size_t{kPage}, std::size_t{kPage + 100}}) {
    hooked_.on_pread = [&](int fd, std::span<std::byte> into, std::uint64_t offset) {
      return os_->pread(fd, is_direct(fd) ? into : into.first(std::min(into.size(), most)), offset)
          .map([&](std::size_t got) { return std::min(got, most); });
    };
    SourceReader reader(hooked_, file_.get(), "label");
    expect_reads(reader, 0, kSize);
    expect_reads(reader, 9, kSize - 9);
  }
}

TEST_F(SourceReaderTest, ReadingPastTheEndIsDataLossThatNamesTheFile) {
  SourceReader reader(*os_, file_.get(), "the label");
  for (const bool direct : {true, false}) {
    const auto done = reader.read(place(0, kSize + 1), 0, direct);
    ASSERT_FALSE(done);
    EXPECT_EQ(done.error().code, ErrorCode::kDataLoss);
    EXPECT_NE(done.error().message.find("the label"), std::string::npos);
    EXPECT_FALSE(reader.read(place(8 * kPage, kPage), 8 * kPage, direct));
  }
}

TEST_F(SourceReaderTest, AFailedReadIsATypedErrorThatNamesTheFile) {
  for (const bool direct : {true, false}) {
    hooked_.on_pread = [&](int, std::span<std::byte>, std::uint64_t) -> SysResult<std::size_t> {
      return tl::unexpected(Errno{EIO});
    };
    SourceReader reader(hooked_, file_.get(), "the label");
    const auto done = reader.read(place(0, kSize), 0, direct);
    ASSERT_FALSE(done);
    EXPECT_EQ(done.error().code, ErrorCode::kDataLoss);
    EXPECT_NE(done.error().message.find("the label"), std::string::npos);
  }
}

TEST_F(SourceReaderTest, TheDescriptorCountsNotThePath) {
  SourceReader before(*os_, file_.get(), "label");
  std::filesystem::rename(source_, source_ + ".old");
  testing::write_file(source_, std::string(kSize, 'x'));
  SourceReader after(*os_, file_.get(), "label");
  expect_reads(before, 0, kSize);
  expect_reads(after, 0, kSize);
}

TEST_F(SourceReaderTest, TellsWhatTheCacheHolds) {
  for (const char* const disabled : {"", "cachestat"}) {
    const auto os = make_os({folder_.path(), disabled});
    SourceReader reader(*os, file_.get(), "label");
    expect_reads(reader, kPage - 1, 2);  // something is read
    std::vector<std::byte> all(kSize);
    ASSERT_TRUE(reader.read(all, 0, false));
    EXPECT_FALSE(reader.cold(0, kSize)) << disabled;
    EXPECT_FALSE(reader.cold(0, 0));
    const auto off = make_os({folder_.path(), "direct_io"});
    forget_source();
    EXPECT_FALSE(SourceReader(*off, file_.get(), "label").cold(0, kSize));
    const auto cached = os->cached_bytes(file_.get(), 0, kSize);
    if (cached && *cached == 0 && Fd(::open(source_.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC))) {
      EXPECT_TRUE(reader.cold(0, kSize)) << disabled;
    }
  }
}

TEST_F(SourceReaderTest, ManyThreadsMayReadAtOnce) {
  std::atomic<int> refused{0};
  hooked_.on_pread = [&](int fd, std::span<std::byte> into, std::uint64_t offset) -> SysResult<std::size_t> {
    if (is_direct(fd) && ++refused > 20) return tl::unexpected(Errno{EINVAL});  // gives up in mid-flight
    return os_->pread(fd, into, offset);
  };
  SourceReader reader(hooked_, file_.get(), "label");
  std::atomic<int> wrong{0};
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&] {
        std::vector<std::byte> bytes(6 * kPage);
        const auto address = reinterpret_cast<std::uintptr_t>(bytes.data());
        const std::span<std::byte> into = std::span(bytes).subspan(round_up(address, kPage) - address, 4 * kPage);
        for (int round = 0; round < 20; ++round) {
          if (!reader.read(into, 0, true) || testing::first_difference(into) != into.size()) ++wrong;
        }
      });
    }
  }
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace modelbroker
