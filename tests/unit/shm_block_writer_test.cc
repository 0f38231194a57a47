#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "tests/support/block_fixture.h"

namespace modelbroker {
namespace {

using testing::BlockRecipe;
using testing::kMiB;
using testing::plan_of;
using testing::sample_manifest;

class BlockWriterTest : public testing::BlockFixture {
 protected:
  [[nodiscard]] Result<BlockWriter> create(const BlockRecipe& recipe = {}) {
    return BlockWriter::create(*os_, *directory_, plan_of(recipe, sample_manifest(recipe).encode().size()));
  }
  [[nodiscard]] Result<Block> publish(BlockWriter writer, const BlockRecipe& recipe) {
    const Manifest manifest = sample_manifest(recipe);
    const ChunkHashes hashes = testing::hash_chunks(writer);
    return std::move(writer).publish(manifest, manifest.encode(), hashes);
  }
  // Every byte that the format does not name is zero.
  static void expect_zero_elsewhere(const Block& block) {
    std::vector<std::byte> bytes = contents(block.path());
    const BlockLayout& layout = block.header().layout;
    ASSERT_EQ(bytes.size(), layout.block_size);
    for (const ByteRange& part : {ByteRange{0, 160}, layout.payload, layout.manifest, layout.chunk_table}) {
      std::ranges::fill(std::span(bytes).subspan(part.offset, part.size), std::byte{0});
    }
    const auto found = std::ranges::find_if(bytes, [](std::byte byte) { return byte != std::byte{0}; });
    EXPECT_EQ(found, bytes.end()) << "at " << found - bytes.begin();
  }
};

TEST_F(BlockWriterTest, MakesATemporaryFileOfFullSize) {
  const auto writer = create({.payload_size = 10 * kMiB, .generation = 9});
  ASSERT_TRUE(writer) << writer.error().message;
  ASSERT_EQ(files().size(), 1U);
  const auto name = BlockName::parse(files()[0]);
  ASSERT_TRUE(name);
  EXPECT_EQ(name->state, BlockState::kTemporary);
  EXPECT_EQ(name->generation, 9U);
  EXPECT_EQ(name->digest16, "0000000000000000");
  const auto file = os_->lstat(folder_ / files()[0]).value();
  EXPECT_EQ(file.st_mode & 07777U, 0600U);
  EXPECT_EQ(static_cast<std::uint64_t>(file.st_size), writer->layout().block_size);
  EXPECT_EQ(writer->bytes_held().value(), 0U);
}

TEST_F(BlockWriterTest, GivesBytesAtAHugePageBorder) {
  auto writer = create({.payload_size = 10 * kMiB, .phase = 40}).value();
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(writer.bytes().data()) % kHugePage, 0U);
  EXPECT_EQ(writer.bytes().size(), writer.layout().block_size);
  EXPECT_EQ(writer.payload().data(), writer.bytes().data() + kHugePage + 40);
  EXPECT_EQ(writer.payload().size(), 10 * kMiB);
}

TEST_F(BlockWriterTest, LeavesNothingWhenItIsNotPublished) {
  {
    auto writer = create().value();
    ASSERT_TRUE(writer.make_pages(writer.layout().payload));
    EXPECT_EQ(files().size(), 1U);
    BlockWriter moved = std::move(writer);
    EXPECT_EQ(files().size(), 1U);
  }
  EXPECT_TRUE(files().empty());
}

TEST_F(BlockWriterTest, RefusesAnImpossiblePlan) {
  BlockPlan plan;
  plan.payload_size = ~0ULL;
  EXPECT_EQ(BlockWriter::create(*os_, *directory_, plan).error().code, ErrorCode::kResourceExhausted);
  EXPECT_TRUE(files().empty());
}

// ---- pages

TEST_F(BlockWriterTest, MakesThePagesOfARangeAndNoOthers) {
  auto writer = create({.payload_size = 10 * kMiB}).value();
  ASSERT_TRUE(writer.make_pages({0, 0}));
  EXPECT_EQ(writer.bytes_held().value(), 0U);
  ASSERT_TRUE(writer.make_pages({0, 1}));
  EXPECT_EQ(writer.bytes_held().value(), kHugePage);
  ASSERT_TRUE(writer.make_pages({4 * kMiB - 1, 2}));  // the last byte of one step, the first of the next
  EXPECT_EQ(writer.bytes_held().value(), 3 * kHugePage);
  ASSERT_TRUE(writer.make_pages({4 * kMiB - 1, 2}));
  EXPECT_EQ(writer.bytes_held().value(), 3 * kHugePage);
  ASSERT_TRUE(writer.make_pages({0, writer.layout().block_size}));
  EXPECT_EQ(writer.bytes_held().value(), writer.layout().block_size);
}

TEST_F(BlockWriterTest, RefusesRangesOutsideTheBlock) {
  auto writer = create({.payload_size = 10 * kMiB}).value();
  const std::uint64_t size = writer.layout().block_size;
  for (const ByteRange& range : {ByteRange{size, 1}, ByteRange{0, size + 1}, ByteRange{size + 1, 0},
                                 ByteRange{1, ~0ULL}, ByteRange{~0ULL, 1}, ByteRange{~0ULL, ~0ULL}}) {
    EXPECT_EQ(writer.make_pages(range).error().code, ErrorCode::kInvalidArgument);
  }
  EXPECT_EQ(writer.bytes_held().value(), 0U);
}

TEST_F(BlockWriterTest, ThreadsThatMeetInOnePageMakeItOnce) {
  const BlockRecipe recipe{.payload_size = 64 * kMiB};
  auto writer = create(recipe).value();
  std::atomic<int> failed{0};
  const auto make = [&](std::uint64_t begin) {
    for (std::uint64_t at = begin; at < writer.layout().block_size; at += 2 * 700'000) {
      const std::uint64_t size = std::min<std::uint64_t>(700'000, writer.layout().block_size - at);
      if (!writer.make_pages({at, size})) ++failed;
    }
  };
  {
    const std::jthread one(make, 0);
    const std::jthread two(make, 700'000);
  }
  EXPECT_EQ(failed, 0);
  EXPECT_EQ(writer.bytes_held().value(), writer.layout().block_size);
}

// ---- publish

TEST_F(BlockWriterTest, PublishesUnderItsDigestAndGeneration) {
  const Block block = make({.generation = 12});
  EXPECT_EQ(block.name().state, BlockState::kPublished);
  EXPECT_EQ(block.name().generation, 12U);
  EXPECT_EQ(block.name().digest16, to_hex(block.header().digest).substr(0, 16));
  EXPECT_EQ(files(), std::vector<std::string>{block.id()});
  EXPECT_EQ(block.path(), folder_ / block.id());
  EXPECT_EQ(os_->lstat(block.path())->st_mode & 07777U, 0400U);
  EXPECT_EQ(block.header().generation, 12U);
  EXPECT_EQ(block.header().broker_boot_id, (BootId{1, 2, 3}));
  std::string boot_id = to_hex(block.header().kernel_boot_id);
  for (const std::size_t at : {8UL, 13UL, 18UL, 23UL}) boot_id.insert(at, "-");
  EXPECT_EQ(boot_id + "\n", os_->read_text("/proc/sys/kernel/random/boot_id").value());
  EXPECT_EQ(block.manifest(), sample_manifest({.generation = 12}));
  EXPECT_FALSE(block.draining());
}

TEST_F(BlockWriterTest, LeavesNoHoles) {
  std::uint64_t generation = 1;
  for (const std::uint64_t size :
       {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{4096}, 3 * kMiB, 5 * kMiB, 40 * kMiB}) {
    for (const std::uint64_t phase : {0ULL, 100ULL}) {
      const BlockRecipe recipe{.payload_size = size, .phase = phase, .generation = generation++};
      // No page asked for, and only the payload's.
      const auto block = publish(create(recipe).value(), recipe);
      ASSERT_TRUE(block) << block.error().message;
      EXPECT_EQ(block->bytes_held(), block->header().layout.block_size);
      EXPECT_EQ(os_->lstat(block->path())->st_blocks * 512, static_cast<std::int64_t>(block->bytes_held()));
      const Block filled = make({.payload_size = size, .phase = phase, .generation = generation++});
      EXPECT_EQ(filled.bytes_held(), filled.header().layout.block_size);
    }
  }
}

TEST_F(BlockWriterTest, TheManifestMayBeLongerThanTwoMiB) {
  const BlockRecipe recipe{.payload_size = 5 * kMiB, .phase = 9};
  Manifest manifest = sample_manifest(recipe);
  manifest.metadata["long"] = std::string(3 * kMiB, 'x');
  const auto encoded = manifest.encode();
  auto writer = BlockWriter::create(*os_, *directory_, plan_of(recipe, encoded.size())).value();
  const ChunkHashes hashes = testing::hash_chunks(writer);
  const auto block = std::move(writer).publish(manifest, encoded, hashes);
  ASSERT_TRUE(block) << block.error().message;
  EXPECT_GT(block->header().layout.manifest.offset, block->header().layout.payload.offset);
  EXPECT_EQ(block->bytes_held(), block->header().layout.block_size);
  expect_zero_elsewhere(*block);
  EXPECT_EQ(adopt(*block)->manifest(), manifest);
  EXPECT_EQ(view(*block)->read_manifest().value(), manifest);
}

TEST_F(BlockWriterTest, ZeroesWhatADirectReadLeftAroundThePayload) {
  std::uint64_t generation = 1;
  for (const std::uint64_t size : {10'000ULL, 6'000'000ULL}) {
    const BlockRecipe recipe{.payload_size = size, .phase = 1234, .generation = generation++};
    auto writer = create(recipe).value();
    ASSERT_TRUE(writer.make_pages({0, writer.layout().block_size}));
    std::ranges::fill(writer.bytes(), std::byte{0xff});
    const auto block = publish(std::move(writer), recipe);
    ASSERT_TRUE(block) << block.error().message;
    expect_zero_elsewhere(*block);
    const auto mapped = view(*block).value();
    EXPECT_TRUE(std::ranges::all_of(mapped.payload(), [](std::byte byte) { return byte == std::byte{0xff}; }));
  }
}

TEST_F(BlockWriterTest, RefusesWhatWasNotPlannedAndLeavesNothing) {
  const BlockRecipe recipe;
  const Manifest manifest = sample_manifest(recipe);
  const auto encoded = manifest.encode();
  EXPECT_EQ(create(recipe)->layout().chunk_count(), 1U);
  const auto shorter = std::span(encoded).first(encoded.size() - 1);
  EXPECT_EQ(create(recipe).value().publish(manifest, shorter, {1}).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(create(recipe).value().publish(manifest, encoded, {}).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(create(recipe).value().publish(manifest, encoded, {1, 2}).error().code, ErrorCode::kInvalidArgument);
  EXPECT_TRUE(files().empty());
}

TEST_F(BlockWriterTest, NeverReplacesABlock) {
  std::string path;
  {
    Block first = make();
    path = first.path();
    ASSERT_EQ(::rename(path.c_str(), (folder_ / "kept").c_str()), 0);
  }
  std::ofstream(path) << "in the way";
  const auto second = testing::make_block(*os_, *directory_);
  EXPECT_EQ(second.error().code, ErrorCode::kAlreadyExists);
  EXPECT_EQ(os_->read_text(path).value(), "in the way");
  EXPECT_EQ(files().size(), 2U);
}

TEST_F(BlockWriterTest, OneOfManyWritersOfAGenerationWins) {
  for (int round = 0; round < 20; ++round) {
    std::atomic<int> won{0};
    std::atomic<int> lost{0};
    std::atomic<bool> start{false};
    const auto race = [&] {
      start.wait(false);
      auto block = testing::make_block(*os_, *directory_, {.generation = 5});
      if (block) {
        ++won;
      } else if (block.error().code == ErrorCode::kAlreadyExists) {
        ++lost;
      }
    };
    {
      const std::jthread one(race);
      const std::jthread two(race);
      start = true;
      start.notify_all();
    }
    EXPECT_EQ(won, 1);
    EXPECT_EQ(lost, 1);
    ASSERT_EQ(files().size(), 1U);
    std::filesystem::remove(folder_ / files()[0]);
  }
}

std::vector<std::string> our_handles_on(const std::string& path) {
  std::vector<std::string> handles;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    const auto target = std::filesystem::read_symlink(entry.path(), gone);
    if (!gone && target == path) handles.push_back("descriptor " + entry.path().filename().string());
  }
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    if (line.ends_with(path)) handles.push_back(line);
  }
  return handles;
}

TEST_F(BlockWriterTest, KeepsOneReadOnlyDescriptionAndNoMapping) {
  const Block block = make({.payload_size = 5 * kMiB});
  EXPECT_EQ(our_handles_on(block.path()).size(), 1U);
  EXPECT_EQ(::fcntl(block.descriptor().get(), F_GETFL) & O_ACCMODE, O_RDONLY);
  EXPECT_EQ(::fcntl(block.descriptor().get(), F_GETFD), FD_CLOEXEC);
}

// ---- page kinds

TEST_F(BlockWriterTest, SaysWhichPagesItGot) {
  EXPECT_EQ(to_string(PageKind::kSmall), "4KiB");
  EXPECT_EQ(to_string(PageKind::kHuge), "2MiB");
  EXPECT_EQ(make({.payload_size = 5 * kMiB, .generation = 1, .huge_pages = false}).page_kind(), PageKind::kSmall);
  EXPECT_EQ(make({.payload_size = 5000, .generation = 2}).page_kind(), PageKind::kSmall);  // compact
}

TEST_F(BlockWriterTest, ReadersSeeHugePagesAsSuch) {
  if (!os_->features().collapse) GTEST_SKIP() << "this kernel has no MADV_COLLAPSE here";
  const Block block = make({.payload_size = 5 * kMiB});
  if (block.page_kind() != PageKind::kHuge) GTEST_SKIP() << "no huge page was to be had: memory is fragmented";
  EXPECT_TRUE(block.header().huge_pages);
  const auto mapped = view(block).value();
  EXPECT_EQ(testing::first_difference(mapped.payload()), 5 * kMiB);  // touches every page
  const auto address = reinterpret_cast<std::uintptr_t>(mapped.payload().data()) / kHugePage * kHugePage;
  std::ifstream smaps("/proc/self/smaps");
  bool ours = false;
  std::uint64_t huge_kib = 0;
  for (std::string line; std::getline(smaps, line);) {
    if (line.ends_with(block.path())) ours = true;
    if (ours && line.starts_with("ShmemPmdMapped:")) {
      huge_kib = std::stoull(line.substr(15));
      break;
    }
  }
  EXPECT_EQ(address % kHugePage, 0U);
  EXPECT_GE(huge_kib, 6 * 1024U);  // the three steps that hold the payload
}

}  // namespace
}  // namespace modelbroker
