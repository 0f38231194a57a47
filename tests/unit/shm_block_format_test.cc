#include "shm/block_format.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <random>

namespace modelbroker {
namespace {

constexpr std::uint64_t kMiB = 1ULL << 20;

// ---- layout

void expect_lawful(const BlockLayout& layout, std::uint64_t payload_size, std::uint64_t phase,
                   std::uint64_t manifest_size) {
  SCOPED_TRACE("payload " + std::to_string(payload_size) + ", phase " + std::to_string(phase) + ", manifest " +
               std::to_string(manifest_size));
  ASSERT_EQ(layout.payload.size, payload_size);
  ASSERT_EQ(layout.manifest.size, manifest_size);
  // Nothing overlaps, all lies inside.
  std::vector<ByteRange> parts{{0, kPage}, layout.payload, layout.manifest, layout.chunk_table};
  std::erase_if(parts, [](const ByteRange& part) { return part.size == 0; });
  std::ranges::sort(parts, {}, &ByteRange::offset);
  for (std::size_t i = 0; i + 1 < parts.size(); ++i) ASSERT_LE(parts[i].end(), parts[i + 1].offset);
  for (const ByteRange& part : parts) ASSERT_LE(part.end(), layout.block_size);
  // Alignment.
  const std::uint64_t boundary = layout.compact ? kPage : kHugePage;
  ASSERT_EQ(layout.block_size % boundary, 0U);
  ASSERT_EQ(layout.payload.offset % boundary, phase);
  ASSERT_EQ(layout.manifest.offset % 8, 0U);
  ASSERT_EQ(layout.chunk_table.offset % 8, 0U);
  ASSERT_EQ(layout.compact, layout.block_size < kCompactLimit);
  if (!layout.compact && layout.manifest.offset > layout.payload.offset) {
    ASSERT_EQ(layout.manifest.offset % kHugePage, 0U);
  }
  // Chunks tile the payload, each ends where a page ends.
  ASSERT_EQ(layout.chunk_table.size, std::uint64_t{layout.chunk_count()} * 8);
  std::uint64_t at = layout.payload.offset;
  for (std::uint32_t i = 0; i < layout.chunk_count(); ++i) {
    const ByteRange chunk = layout.chunk(i);
    ASSERT_EQ(chunk.offset, at);
    ASSERT_GT(chunk.size, 0U);
    ASSERT_LE(chunk.size, kChunkSize);
    at = chunk.end();
    ASSERT_TRUE(at % kPage == 0 || at == layout.payload.end());
  }
  ASSERT_EQ(at, layout.payload.end());
}

TEST(BlockLayout, KeepsItsRulesForRandomSizes) {
  constexpr std::uint64_t kSeed = 4711;
  SCOPED_TRACE("seed " + std::to_string(kSeed));
  std::mt19937_64 random(kSeed);
  const auto size = [&](unsigned most_bits) { return random() >> (64 - random() % (most_bits + 1) % 64 - 1); };
  for (int i = 0; i < 20'000; ++i) {
    const std::uint64_t payload = size(34);
    const std::uint64_t phase = random() % 3 == 0 ? 0 : random() % kPage;
    const std::uint64_t manifest = std::min(size(23), kLargestManifest);
    const auto layout = BlockLayout::plan(payload, phase, manifest);
    ASSERT_TRUE(layout);
    ASSERT_NO_FATAL_FAILURE(expect_lawful(*layout, payload, phase, manifest));
    BlockHeader header;
    header.layout = *layout;
    const auto again = BlockHeader::decode(header.encode(), layout->block_size);
    ASSERT_TRUE(again) << again.error().message;
    ASSERT_EQ(again->layout, *layout);
  }
}

TEST(BlockLayout, KeepsItsRulesAroundEveryBorder) {
  const std::vector<std::uint64_t> sizes{0, 1, 4095, 4096, 4097, kHugePage, kCompactLimit, kChunkSize, 2 * kChunkSize};
  for (const std::uint64_t around : sizes) {
    for (int delta = -9000; delta <= 9000; delta += 500) {
      const std::int64_t size = static_cast<std::int64_t>(around) + delta;
      const auto payload = static_cast<std::uint64_t>(std::max<std::int64_t>(0, size));
      for (const std::uint64_t phase : {0ULL, 1ULL, 4095ULL}) {
        for (const std::uint64_t manifest : {std::uint64_t{0}, std::uint64_t{1}, kHugePage - kPage - 16,
                                             kHugePage - kPage, kHugePage, kCompactLimit}) {
          const auto layout = BlockLayout::plan(payload, phase, manifest);
          ASSERT_TRUE(layout);
          ASSERT_NO_FATAL_FAILURE(expect_lawful(*layout, payload, phase, manifest));
        }
      }
    }
  }
}

TEST(BlockLayout, ChoosesTheFormByTheCompactSize) {
  const auto small = BlockLayout::plan(1000, 0, 100).value();
  EXPECT_TRUE(small.compact);
  EXPECT_EQ(small.manifest.offset, 4096U);
  EXPECT_EQ(small.payload.offset, 8192U);
  EXPECT_EQ(small.block_size, 12288U);
  // Header and metadata take two pages.
  EXPECT_TRUE(BlockLayout::plan(kCompactLimit - 3 * kPage, 0, 100)->compact);
  EXPECT_FALSE(BlockLayout::plan(kCompactLimit - 2 * kPage, 0, 100)->compact);

  const auto large = BlockLayout::plan(100 * kMiB, 40, 100).value();
  EXPECT_EQ(large.payload.offset, kHugePage + 40);
  EXPECT_EQ(large.manifest.offset, 4096U);
  EXPECT_EQ(large.chunk_table.offset, 4096U + 104);
  EXPECT_EQ(large.block_size, 104 * kMiB);

  const auto wordy = BlockLayout::plan(100 * kMiB, 0, 3 * kMiB).value();
  EXPECT_EQ(wordy.payload.offset, kHugePage);
  EXPECT_EQ(wordy.manifest.offset, 102 * kMiB);
  EXPECT_EQ(wordy.block_size, 106 * kMiB);
}

TEST(BlockLayout, RefusesWhatNoBlockCanHold) {
  constexpr std::uint64_t kMost = std::numeric_limits<std::uint64_t>::max();
  for (const std::uint64_t payload : {kMost, kMost - kPage, std::uint64_t{1} << 62, (std::uint64_t{1} << 55) + 1}) {
    EXPECT_EQ(BlockLayout::plan(payload, 0, 10).error().code, ErrorCode::kResourceExhausted);
  }
  EXPECT_EQ(BlockLayout::plan(10, 0, kMost).error().code, ErrorCode::kResourceExhausted);
  EXPECT_EQ(BlockLayout::plan(10, 0, kLargestManifest + 1).error().code, ErrorCode::kResourceExhausted);
  EXPECT_EQ(BlockLayout::plan(10, kPage, 10).error().code, ErrorCode::kInvalidArgument);
  EXPECT_TRUE(BlockLayout::plan(1ULL << 55, 4095, kLargestManifest));
}

// ---- header

BlockHeader sample_header() {
  BlockHeader header;
  header.layout = BlockLayout::plan(40 * kMiB + 5, 100, 1000).value();
  header.generation = 77;
  std::ranges::fill(header.broker_boot_id, std::uint8_t{1});
  std::ranges::fill(header.kernel_boot_id, std::uint8_t{2});
  std::ranges::fill(header.digest, std::uint8_t{3});
  header.manifest_hash = 4;
  header.huge_pages = true;
  return header;
}

TEST(BlockHeader, ComesBackAsItWas) {
  BlockHeader header = sample_header();
  EXPECT_EQ(BlockHeader::decode(header.encode(), header.layout.block_size).value(), header);
  header.huge_pages = false;
  EXPECT_EQ(BlockHeader::decode(header.encode(), header.layout.block_size).value(), header);
  header = BlockHeader();
  header.layout = BlockLayout::plan(0, 0, 0).value();
  EXPECT_EQ(BlockHeader::decode(header.encode(), header.layout.block_size).value(), header);
}

TEST(BlockHeader, IsZeroBehindItsFields) {
  const auto page = sample_header().encode();
  EXPECT_TRUE(std::all_of(page.begin() + 160, page.end(), [](std::byte b) { return b == std::byte{0}; }));
}

TEST(BlockHeader, EveryFlippedBitIsRefused) {
  const BlockHeader header = sample_header();
  for (std::size_t bit = 0; bit < std::size_t{160} * 8; ++bit) {
    auto page = header.encode();
    page[bit / 8] ^= std::byte{1} << (bit % 8);
    const auto decoded = BlockHeader::decode(page, header.layout.block_size);
    ASSERT_FALSE(decoded) << "bit " << bit;
    // Bytes 10 and 11 say that a newer reader is needed; that is believed before the checksum.
    const bool newer = bit / 8 == 10 || bit / 8 == 11;
    const auto expected = newer && bit != 80 ? ErrorCode::kUnimplemented : ErrorCode::kDataLoss;
    ASSERT_EQ(decoded.error().code, expected) << "bit " << bit;
  }
}

TEST(BlockHeader, RefusesAFileOfAnotherSize) {
  const BlockHeader header = sample_header();
  const auto page = header.encode();
  for (const std::uint64_t size : {std::uint64_t{0}, std::uint64_t{4095}, kPage, header.layout.block_size - 1,
                                   header.layout.block_size + 1, 2 * header.layout.block_size}) {
    EXPECT_EQ(BlockHeader::decode(page, size).error().code, ErrorCode::kDataLoss) << size;
  }
  EXPECT_EQ(BlockHeader::decode(std::span(page).first(4095), header.layout.block_size).error().code,
            ErrorCode::kDataLoss);
}

// A header whose checksum holds and whose layout lies.
void expect_layout_refused(const std::function<void(BlockLayout&)>& change, const char* what) {
  BlockHeader header = sample_header();
  change(header.layout);
  const auto decoded = BlockHeader::decode(header.encode(), header.layout.block_size);
  ASSERT_FALSE(decoded) << what;
  EXPECT_EQ(decoded.error().code, ErrorCode::kDataLoss) << what;
}

TEST(BlockHeader, RefusesRangesThatOverlapOrLieOutside) {
  constexpr std::uint64_t kMost = std::numeric_limits<std::uint64_t>::max();
  expect_layout_refused([](BlockLayout& l) { l.payload.offset = 100; }, "payload over the header");
  expect_layout_refused([](BlockLayout& l) { l.payload.offset = 4096 + 100; }, "payload over the manifest");
  expect_layout_refused([](BlockLayout& l) { l.payload.offset = l.block_size; }, "payload behind the end");
  expect_layout_refused([](BlockLayout& l) { l.payload.offset = kMost - 100; }, "payload wraps round");
  expect_layout_refused([](BlockLayout& l) { l.payload.size = kMost; }, "payload of all");
  expect_layout_refused([](BlockLayout& l) { l.payload.size += kChunkSize; }, "payload longer than its chunks");
  expect_layout_refused([](BlockLayout& l) { l.payload.size -= kChunkSize; }, "payload shorter than its chunks");
  expect_layout_refused([](BlockLayout& l) { l.manifest.offset = 0; }, "manifest over the header");
  expect_layout_refused([](BlockLayout& l) { l.manifest.offset += 4; }, "manifest not aligned");
  expect_layout_refused([](BlockLayout& l) { l.manifest.offset = kMost - 7; }, "manifest outside");
  expect_layout_refused([](BlockLayout& l) { l.manifest.offset = 3 * kMiB; }, "manifest in the payload");
  expect_layout_refused([](BlockLayout& l) { l.manifest.size = 3 * kMiB; }, "manifest into the payload");
  expect_layout_refused([](BlockLayout& l) { l.manifest.size = kMost; }, "manifest of all");
  expect_layout_refused([](BlockLayout& l) { l.chunk_table.offset = l.manifest.offset; }, "table over the manifest");
  expect_layout_refused([](BlockLayout& l) { l.chunk_table.offset = 4 * kMiB; }, "table in the payload");
  expect_layout_refused([](BlockLayout& l) { l.chunk_table.offset += 1; }, "table not aligned");
  expect_layout_refused([](BlockLayout& l) { l.chunk_table.offset = l.block_size - 8; }, "table behind the end");
  expect_layout_refused([](BlockLayout& l) { l.chunk_table.size = 0xffffffffULL * 8; }, "table of the largest count");
  expect_layout_refused([](BlockLayout& l) { l.block_size = kPage; }, "block of one page");
  expect_layout_refused(
      [](BlockLayout& l) {
        l = BlockLayout::plan(kLargestManifest, 0, kLargestManifest).value();
        l.manifest.size += 8;
        l.chunk_table.offset += 8;
      },
      "manifest above the limit");
}

// ---- hashes

TEST(Hashes, AreThoseOfTheDocument) {
  // XXH3 of nothing, and of "abc": as xxhsum prints them.
  EXPECT_EQ(hash64({}), 0x2d06800538d394c2ULL);
  EXPECT_EQ(hash64(std::as_bytes(std::span("abc", 3))), 0x78af5f94892f3950ULL);
  const std::vector<std::uint64_t> hashes{1, 2};
  EXPECT_NE(digest_of(1, hashes), digest_of(2, hashes));
  EXPECT_NE(digest_of(1, hashes), digest_of(1, {}));
  const std::vector<std::uint8_t> bytes{0x00, 0x0f, 0xa5, 0xff};
  EXPECT_EQ(to_hex(bytes), "000fa5ff");
  EXPECT_EQ(to_hex({}), "");
}

// ---- names

TEST(BlockName, IsWrittenAsTheDocumentSays) {
  BlockName name{1000, "default", "0123456789abcdef", 42, BlockState::kPublished};
  EXPECT_EQ(name.file_name(), "modelbroker.1000.default.0123456789abcdef.g42");
  EXPECT_EQ(name.id(), name.file_name());
  name.state = BlockState::kDraining;
  EXPECT_EQ(name.file_name(), "modelbroker.1000.default.0123456789abcdef.g42.drain");
  name.state = BlockState::kTemporary;
  EXPECT_EQ(name.file_name(), "modelbroker.1000.default.0123456789abcdef.g42.tmp");
  EXPECT_EQ(name.id(), "modelbroker.1000.default.0123456789abcdef.g42");
  EXPECT_EQ(lock_file_name(1000, "default"), "modelbroker.1000.default.lock");
}

TEST(BlockName, ComesBackAsItWas) {
  constexpr std::uint64_t kSeed = 815;
  SCOPED_TRACE("seed " + std::to_string(kSeed));
  std::mt19937_64 random(kSeed);
  static constexpr std::string_view kLetters = "abcdefghijklmnopqrstuvwxyz0123456789-";
  for (int i = 0; i < 5000; ++i) {
    BlockName name{static_cast<std::uint32_t>(random()), "", "", random() >> (random() % 64),
                   static_cast<BlockState>(random() % 3)};
    for (std::size_t n = 1 + random() % 32; n > 0; --n) name.instance += kLetters[random() % kLetters.size()];
    for (int n = 0; n < 16; ++n) name.digest16 += "0123456789abcdef"[random() % 16];
    const auto again = BlockName::parse(name.file_name());
    ASSERT_TRUE(again) << name.file_name();
    ASSERT_EQ(again->file_name(), name.file_name());
    ASSERT_EQ(again->uid, name.uid);
    ASSERT_EQ(again->instance, name.instance);
    ASSERT_EQ(again->generation, name.generation);
    ASSERT_EQ(again->state, name.state);
    ASSERT_LE(name.file_name().size(), 255U);
  }
}

TEST(BlockName, RefusesEverythingElse) {
  for (const char* const text : {"",
                                 "modelbroker",
                                 "modelbroker.",
                                 "modelbroker.1000.default.lock",
                                 "modelbroker.1000.probe.77",
                                 "modelbroker.1000.default.0123456789abcdef.g",
                                 "modelbroker.1000.default.0123456789abcdef.42",
                                 "modelbroker.1000.default.0123456789abcde.g42",
                                 "modelbroker.1000.default.0123456789abcdeff.g42",
                                 "modelbroker.1000.default.0123456789ABCDEF.g42",
                                 "modelbroker.1000.default.0123456789abcdef.g042",
                                 "modelbroker.01000.default.0123456789abcdef.g42",
                                 "modelbroker.-1.default.0123456789abcdef.g42",
                                 "modelbroker.+1.default.0123456789abcdef.g42",
                                 "modelbroker.4294967296.default.0123456789abcdef.g42",
                                 "modelbroker.1000..0123456789abcdef.g42",
                                 "modelbroker.1000.Default.0123456789abcdef.g42",
                                 "modelbroker.1000.a_b.0123456789abcdef.g42",
                                 "modelbroker.1000.a/b.0123456789abcdef.g42",
                                 "modelbroker.1000.default.0123456789abcdef.g42.",
                                 "modelbroker.1000.default.0123456789abcdef.g42.tm",
                                 "modelbroker.1000.default.0123456789abcdef.g42.tmp.drain",
                                 "modelbroker.1000.default.0123456789abcdef.g42.tmp ",
                                 "modelbroker.1000.default.0123456789abcdef.g18446744073709551616",
                                 "Modelbroker.1.a.0123456789abcdef.g1",
                                 " modelbroker.1.a.0123456789abcdef.g1",
                                 "modelbroker.1.abcdefghijklmnopqrstuvwxyz0123456.0123456789abcdef.g1"}) {
    EXPECT_FALSE(BlockName::parse(text)) << text;
  }
  EXPECT_FALSE(BlockName::parse(std::string_view("modelbroker.1.a.0123456789abcdef.g1\0", 36)));
}

TEST(BlockName, WhatPassesIsItsOnlySpelling) {
  constexpr std::uint64_t kSeed = 816;
  SCOPED_TRACE("seed " + std::to_string(kSeed));
  std::mt19937_64 random(kSeed);
  const std::string good = "modelbroker.10.ab.0123456789abcdef.g42.drain";
  int passed = 0;
  for (int i = 0; i < 50'000; ++i) {
    std::string text = good;
    for (std::size_t n = 1 + random() % 3; n > 0; --n) {
      const std::size_t at = random() % text.size();
      switch (random() % 3) {
        case 0:
          text[at] = static_cast<char>(random() % 256);
          break;
        case 1:
          text.erase(at, 1);
          break;
        default:
          text.insert(at, 1, "0a.-/g"[random() % 6]);
      }
    }
    const auto name = BlockName::parse(text);
    if (!name) continue;
    ++passed;
    ASSERT_EQ(name->file_name(), text);
  }
  EXPECT_GT(passed, 0);
}

TEST(Instance, HasOneTo32HarmlessCharacters) {
  for (const char* const good : {"default", "a", "0", "-", "a-b-9", "abcdefghijklmnopqrstuvwxyz012345"}) {
    EXPECT_TRUE(valid_instance(good)) << good;
  }
  for (const char* const bad : {"", "A", "a.b", "a/b", "..", "a b", "ä", "abcdefghijklmnopqrstuvwxyz0123456"}) {
    EXPECT_FALSE(valid_instance(bad)) << bad;
  }
}

}  // namespace
}  // namespace modelbroker
