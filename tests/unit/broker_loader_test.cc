// A file's way into a block: the bytes, the hashes, the phase; and nothing left where it fails.
#include "broker/ram/loader.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <functional>

#include "broker/ram/source_reader.h"
#include "tests/support/faulty_os.h"
#include "tests/support/hooked_os.h"
#include "tests/support/sanitized.h"
#include "tests/support/source_fixture.h"

namespace modelbroker {
namespace {

using testing::kMiB;

bool is_direct(int fd) { return (::fcntl(fd, F_GETFL) & O_DIRECT) != 0; }

class LoaderFixture : public testing::SourceFixture {
 protected:
  explicit LoaderFixture(const std::string& disabled = "") : SourceFixture(disabled) {}

  [[nodiscard]] LoadSettings settings(unsigned threads = 1) {
    LoadSettings settings;
    settings.generation = ++generation_;
    settings.broker_boot_id = {9, 8, 7};
    settings.threads = threads;
    return settings;
  }
  [[nodiscard]] Result<LoadPlan> plan(const Directory& directory) const {
    return plan_load(directory, {"first", "unet", source_, source_});
  }
  [[nodiscard]] Result<Block> load(Os& os, const Directory& directory, unsigned threads = 1) {
    const Fd file = testing::open_source(source_);
    return load(os, file, directory, settings(threads));
  }
  [[nodiscard]] Result<Block> load(Os& os, const Fd& file, const Directory& directory, const LoadSettings& settings) {
    MODELBROKER_ASSIGN(const LoadPlan planned, plan(directory));
    MODELBROKER_ASSIGN(LoadedBlock loaded, load_block(os, *directory_, file.get(), planned, settings, progress_));
    confirmed_ = loaded.source;
    return std::move(loaded.block);
  }
  [[nodiscard]] Result<Block> load(unsigned threads = 1) { return load(*os_, directory_of_source(), threads); }
  // The one block in the folder holds the source, byte by byte, and its hashes are those of its bytes.
  void expect_whole(const Block& block, std::uint64_t size, std::uint64_t phase) {
    EXPECT_EQ(files(), std::vector<std::string>{block.id()});
    const BlockLayout& layout = block.header().layout;
    EXPECT_EQ(layout.payload.size, size);
    EXPECT_EQ(layout.payload.offset % kPage, phase);
    const auto mapped = view(block);
    ASSERT_TRUE(mapped) << mapped.error().message;
    const std::span<const std::byte> payload = mapped->payload();
    ASSERT_EQ(testing::first_difference(payload), size);
    ChunkHashes hashes;
    for (std::uint32_t i = 0; i < layout.chunk_count(); ++i) {
      const ByteRange chunk = layout.chunk(i);
      hashes.push_back(hash64(payload.subspan(chunk.offset - layout.payload.offset, chunk.size)));
    }
    EXPECT_EQ(block.chunk_hashes(*os_).value(), hashes);
    EXPECT_EQ(block.header().digest, digest_of(size, hashes));
    EXPECT_EQ(progress_.total_bytes, size);
    EXPECT_EQ(progress_.read_bytes, size);
    progress_.read_bytes = 0;
  }
  void expect_nothing_left(const Result<Block>& block, ErrorCode code, std::string_view word) {
    ASSERT_FALSE(block);
    EXPECT_EQ(block.error().code, code) << block.error().message;
    EXPECT_NE(block.error().message.find(word), std::string::npos) << block.error().message;
    EXPECT_TRUE(files().empty());
  }

  LoadProgress progress_;
  FileIdentity confirmed_;  // by the last load
  std::uint64_t generation_ = 0;
};

class LoaderTest : public LoaderFixture {};

// ---- once with all that the kernel gives and once without each feature

class LoaderFeaturesTest : public LoaderFixture, public ::testing::WithParamInterface<std::string> {
 protected:
  LoaderFeaturesTest() : LoaderFixture(GetParam()) {}
};

TEST_P(LoaderFeaturesTest, ABlockHoldsItsSource) {
  const std::uint64_t chunk = kChunkSize;
  for (const auto& [size, phase] : std::vector<std::pair<std::uint64_t, std::uint64_t>>{
           {0, 16}, {1, 8}, {chunk, 0}, {chunk + 1, 0}, {chunk, 4095}, {40 * kMiB + 123, 1234}}) {
    write_source(size, phase);
    for (const unsigned threads : {1U, 8U}) {
      if (testing::kSanitized && threads == 1) continue;
      for (const bool cold : {true, false}) {
        SCOPED_TRACE(std::to_string(size) + (cold ? " cold" : " warm"));
        if (cold) forget_source();
        auto block = load(threads);
        ASSERT_TRUE(block) << block.error().message;
        expect_whole(*block, size, phase);
        ASSERT_TRUE(block->remove(*os_));
      }
    }
  }
}

std::string name_of(const ::testing::TestParamInfo<std::string>& info) {
  return info.param.empty() ? "everything" : "without_" + info.param;
}
INSTANTIATE_TEST_SUITE_P(Each, LoaderFeaturesTest,
                         ::testing::Values("", "direct_io", "collapse", "cachestat", "populate_write", "all"), name_of);

// ---- what a block says of its source

TEST_F(LoaderTest, TheManifestNamesTheSource) {
  write_source(10'000, 100, "np");
  const Directory directory = directory_of_source();
  const auto block = load();
  ASSERT_TRUE(block) << block.error().message;
  const Manifest& manifest = block->manifest();
  EXPECT_EQ(manifest.name, "first");
  EXPECT_EQ(manifest.type, "unet");
  EXPECT_EQ(manifest.format, "safetensors");
  EXPECT_EQ(manifest.source_path, source_);
  EXPECT_EQ(manifest.source, directory.source);
  EXPECT_EQ(manifest.metadata.at("format"), "np");
  EXPECT_EQ(manifest.tensors, directory.tensors);
  EXPECT_EQ(block->header().generation, generation_);
  EXPECT_EQ(block->header().broker_boot_id, (BootId{9, 8, 7}));
  EXPECT_EQ(adopt(*block)->manifest(), manifest);
}

TEST_F(LoaderTest, TheBlockIsAsItWasPlanned) {
  for (const std::uint64_t size : {std::uint64_t{0}, std::uint64_t{5000}, 5 * kMiB}) {
    write_source(size, 777);
    const auto planned = plan(directory_of_source());
    ASSERT_TRUE(planned) << planned.error().message;
    auto block = load();
    ASSERT_TRUE(block) << block.error().message;
    EXPECT_EQ(planned->layout, block->header().layout);
    EXPECT_EQ(block->bytes_held(), planned->layout.block_size);
    ASSERT_TRUE(block->remove(*os_));
  }
}

TEST_F(LoaderTest, APlanThatCannotBeMadeNamesTheFile) {
  Directory directory;
  directory.payload = {100, ~std::uint64_t{0} - 5};
  const auto planned = plan(directory);
  ASSERT_FALSE(planned);
  EXPECT_EQ(planned.error().code, ErrorCode::kResourceExhausted);
  EXPECT_NE(planned.error().message.find(source_), std::string::npos) << planned.error().message;
  EXPECT_FALSE(load(*os_, directory));
  EXPECT_TRUE(files().empty());
}

TEST_F(LoaderTest, TheBytesBeforeAndBehindThePayloadAreZero) {
  // A direct read of whole pages brings the header's end along; it must not stay.
  for (const std::uint64_t size : {10'000 * std::uint64_t{1}, 5 * kMiB}) {
    write_source(size, 4000);
    forget_source();
    auto block = load();
    ASSERT_TRUE(block) << block.error().message;
    const std::vector<std::byte> bytes = contents(block->path());
    const BlockLayout& layout = block->header().layout;
    const auto zero = [](std::byte byte) { return byte == std::byte{0}; };
    const auto begin = bytes.begin() + static_cast<std::ptrdiff_t>(layout.payload.offset);
    EXPECT_TRUE(std::all_of(begin - 4000, begin, zero));
    EXPECT_TRUE(std::all_of(begin + static_cast<std::ptrdiff_t>(size), bytes.end(), zero));
    ASSERT_TRUE(block->remove(*os_));
  }
}

TEST_F(LoaderTest, AColdFileGoesPastTheCacheAndAWarmOneThroughIt) {
  write_source(20 * kMiB, 1000);
  testing::HookedOs hooked(*os_);
  std::atomic<int> direct{0}, buffered{0};
  hooked.on_pread = [&](int fd, std::span<std::byte> into, std::uint64_t offset) {
    ++(is_direct(fd) ? direct : buffered);
    return os_->pread(fd, into, offset);
  };
  const Directory directory = directory_of_source();
  auto warm = load(hooked, directory);
  ASSERT_TRUE(warm) << warm.error().message;
  EXPECT_EQ(direct, 0);
  EXPECT_GT(buffered, 0);
  ASSERT_TRUE(warm->remove(*os_));
  forget_source();
  {
    const Fd file = testing::open_source(source_);
    SourceReader reader(*os_, file.get(), source_);
    if (!reader.cold(0, 20 * kMiB)) GTEST_SKIP() << "no direct reads, or no disk, here";
  }
  progress_.read_bytes = 0;
  const auto cold = load(hooked, directory);
  ASSERT_TRUE(cold) << cold.error().message;
  EXPECT_GT(direct, 0);
  expect_whole(*cold, 20 * kMiB, 1000);
}

// ---- a source that changes

TEST_F(LoaderTest, ASourceThatChangesAtAnyReadIsDataLoss) {
  constexpr std::uint64_t kBytes = 18 * kMiB;  // two chunks
  struct Change {
    const char* word;
    std::function<void()> make;
  };
  const std::vector<Change> changes{
      {"shorter", [&] { std::filesystem::resize_file(source_, 5000); }},
      {"changed while", [&] { std::filesystem::resize_file(source_, kBytes + 3 * kPage); }},
      {"changed while", [&] { overwrite_source(5000, "other"); }}};
  for (const Change& change : changes) {
    for (const int at : {1, 2, 5}) {
      SCOPED_TRACE(std::string(change.word) + " at read " + std::to_string(at));
      write_source(kBytes, 500);
      const Directory directory = directory_of_source();
      testing::HookedOs hooked(*os_);
      std::atomic<int> reads{0};
      hooked.on_pread = [&](int fd, std::span<std::byte> into, std::uint64_t offset) {
        if (++reads == at) change.make();
        return os_->pread(fd, into, offset);
      };
      const auto block = load(hooked, directory);
      ASSERT_GE(reads, at);
      expect_nothing_left(block, ErrorCode::kDataLoss, change.word);
      EXPECT_NE(block.error().message.find(source_), std::string::npos) << block.error().message;
    }
  }
}

TEST_F(LoaderTest, ASourceThatIsRewrittenBehindTheReaderAndGetsItsOldMtimeIsDataLoss) {
  constexpr std::uint64_t kBytes = 18 * kMiB;                                    // two chunks
  for (const std::uint64_t offset : {std::uint64_t{30}, std::uint64_t{5000}}) {  // in the header, in the data
    for (const int at : {2, 5}) {
      SCOPED_TRACE("at " + std::to_string(offset) + ", at read " + std::to_string(at));
      write_source(kBytes, 500);
      const Directory directory = directory_of_source();
      testing::HookedOs hooked(*os_);
      std::atomic<int> reads{0};
      hooked.on_pread = [&](int fd, std::span<std::byte> into, std::uint64_t from) {
        if (++reads == at) {
          overwrite_source(offset, "X");
          age_source();
          touch_ctime_of_source();  // those two may fall into the same step of the clock
        }
        return os_->pread(fd, into, from);
      };
      expect_nothing_left(load(hooked, directory), ErrorCode::kDataLoss, "changed while");
    }
  }
}

// What changes a file's ctime, or its name, and not its bytes.
TEST_F(LoaderTest, ASourceThatIsTouchedMeanwhileIsReadAgainAndLoaded) {
  constexpr std::uint64_t kBytes = 18 * kMiB;
  const std::vector<std::pair<const char*, std::function<void()>>> touches{
      {"chmod", [&] { touch_ctime_of_source(); }},
      {"link",
       [&] {
         std::filesystem::create_hard_link(source_, source_ + ".link");
         touch_ctime_of_source();  // the link's may fall into the same step of the clock
       }},
      {"rename over it",
       [&] {
         touch_ctime_of_source();
         testing::write_file(source_ + ".new", "another file");
         std::filesystem::rename(source_ + ".new", source_);
       }},
      {"unlink",
       [&] {
         touch_ctime_of_source();
         std::filesystem::remove(source_);
       }},
  };
  for (const auto& named : touches) {
    SCOPED_TRACE(named.first);
    std::filesystem::remove(source_);
    std::filesystem::remove(source_ + ".link");
    write_source(kBytes, 500);
    const Directory directory = directory_of_source();
    const Fd file = testing::open_source(source_);
    testing::HookedOs hooked(*os_);
    std::atomic<int> reads{0};
    hooked.on_pread = [&](int fd, std::span<std::byte> into, std::uint64_t offset) {
      if (++reads == 2) named.second();
      return os_->pread(fd, into, offset);
    };
    progress_.read_bytes = 0;
    auto block = load(hooked, file, directory, settings());
    ASSERT_TRUE(block) << block.error().message;
    expect_whole(*block, kBytes, 500);
    EXPECT_NE(confirmed_, directory.source);
    EXPECT_EQ(confirmed_, identify(*os_, file.get(), source_).value());
    ASSERT_TRUE(block->remove(*os_));
  }
}

// ---- memory, as the machine has it

TEST_F(LoaderTest, ALoadStopsAtTheFirstChunkForWhichThereIsNoMemory) {
  write_source(40 * kMiB, 0);
  LoadSettings settings = this->settings();
  settings.headroom.emplace(*os_, 1ULL << 60);
  expect_nothing_left(load(*os_, testing::open_source(source_), directory_of_source(), settings),
                      ErrorCode::kResourceExhausted, source_);
  EXPECT_EQ(progress_.read_bytes, 0U);
}

TEST_F(LoaderTest, WhatIsMadeIsShownAllTheTime) {
  write_source(40 * kMiB, 0);
  LoadSettings settings = this->settings();
  settings.gauge = std::make_shared<BlockGauge>();
  testing::HookedOs hooked(*os_);
  std::uint64_t seen = 0;
  hooked.on_pread = [&](int fd, std::span<std::byte> into, std::uint64_t offset) {
    const std::uint64_t now = settings.gauge->bytes();
    EXPECT_GE(now, seen);
    seen = now;
    return os_->pread(fd, into, offset);
  };
  auto block = load(hooked, testing::open_source(source_), directory_of_source(), settings);
  ASSERT_TRUE(block) << block.error().message;
  EXPECT_GT(seen, 36 * kMiB);
  EXPECT_EQ(settings.gauge->bytes(), block->bytes_held());
  ASSERT_TRUE(block->remove(*os_));
  EXPECT_EQ(settings.gauge->bytes(), 0U);
}

// ---- cancelled, and faults

TEST_F(LoaderTest, ACancelledLoadLeavesNothing) {
  write_source(50 * kMiB, 500);
  const Directory directory = directory_of_source();
  for (const unsigned threads : {1U, 4U}) {
    for (const int at : {0, 1, 9}) {
      testing::HookedOs hooked(*os_);
      std::atomic<int> reads{0};
      progress_.cancelled = at == 0;
      hooked.on_pread = [&](int fd, std::span<std::byte> into, std::uint64_t offset) {
        if (++reads == at) progress_.cancelled = true;
        return os_->pread(fd, into, offset);
      };
      // With a thread for each chunk there is none to be left out: the load may end whole.
      const auto block = load(hooked, directory, threads);
      if (threads == 1 || at == 0) {
        expect_nothing_left(block, ErrorCode::kCancelled, "cancelled");
        EXPECT_LE(reads, at == 0 ? 0 : 16);  // not a chunk more than it was in
      } else if (block) {
        ASSERT_TRUE(adopt(*block));
        std::filesystem::remove(block->path());
      } else {
        expect_nothing_left(block, ErrorCode::kCancelled, "cancelled");
      }
    }
  }
}

TEST_F(LoaderTest, NoMemoryForPagesLeavesNothing) {
  write_source(18 * kMiB, 500);
  const Directory directory = directory_of_source();
  for (const char* const disabled : {"", "collapse", "populate_write"}) {
    const auto os = make_os({folder_.path(), disabled});
    for (const int error : {ENOMEM, ENOSPC}) {
      for (const int at : {2, 4, 9}) {
        for (const unsigned threads : {1U, 4U}) {
          testing::HookedOs hooked(*os);
          std::atomic<int> calls{0};
          hooked.on_pages = [&] { return ++calls >= at ? error : 0; };
          expect_nothing_left(load(hooked, directory, threads), ErrorCode::kResourceExhausted, "making pages");
        }
      }
    }
  }
}

TEST_F(LoaderTest, EveryFaultIsSurvivedOrLeavesNothing) {
  write_source(6 * kMiB, 500);
  const Directory directory = directory_of_source();
  testing::FaultyOs faulty(*os_);
  for (const bool cold : {true, false}) {
    for (const int error : {EIO, ENOSPC}) {
      for (std::uint64_t call = 1;; ++call) {
        SCOPED_TRACE(call);
        if (cold) forget_source();
        progress_.read_bytes = 0;
        faulty.fail_at(call, error);
        auto block = load(faulty, directory);
        if (block) {
          expect_whole(*block, 6 * kMiB, 500);
          ASSERT_TRUE(block->remove(*os_));
        } else {
          EXPECT_EQ(block.error().code, error == EIO ? ErrorCode::kDataLoss : ErrorCode::kResourceExhausted);
          EXPECT_TRUE(files().empty());
        }
        if (!faulty.failed_one()) {
          EXPECT_GT(call, 10U);
          break;
        }
      }
    }
  }
}

}  // namespace
}  // namespace modelbroker
