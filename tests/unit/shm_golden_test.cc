// Blocks that earlier versions wrote, made from docs/block-format.md by another program. Every later
// version must read them: never change the files, never loosen a value here.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <iterator>

#include "shm/block.h"
#include "tests/support/block_maker.h"
#include "tests/support/temp_directory.h"

namespace modelbroker {
namespace {

std::vector<std::byte> golden(const std::string& name) {
  std::ifstream file(std::string(MODELBROKER_GOLDEN_DIRECTORY "/") + name, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const auto* const begin = reinterpret_cast<const std::byte*>(text.data());
  return {begin, begin + text.size()};
}

// first, first + 1, ...
BootId counting_from(std::uint8_t first) {
  BootId id{};
  for (std::uint8_t& byte : id) byte = first++;
  return id;
}

Manifest golden_manifest() {
  Manifest manifest;
  manifest.name = "golden";
  manifest.type = "unet";
  manifest.format = "safetensors";
  manifest.source_path = "/models/golden.safetensors";
  manifest.source = {(1ULL << 63) + 5, 123456789, 11234, -5, 1700000000123456789};
  manifest.metadata = {{"format", "pt"},
                       {"note",
                        "gr\xc3\xbc\xc3\x9f"
                        "e"}};
  manifest.tensors = {{"first", "BF16", {10, 20}, 0, 400},
                      {"second", "F32", {2399}, 400, 9596},
                      {"scalar", "F32", {}, 9996, 4},
                      {"none", "U8", {0, 7}, 10000, 0}};
  return manifest;
}

void expect_golden_payload(std::span<const std::byte> payload) {
  ASSERT_EQ(payload.size(), 10'000U);
  for (std::size_t i = 0; i < payload.size(); ++i) {
    ASSERT_EQ(payload[i], static_cast<std::byte>(i * 7 + 3)) << i;
  }
}

class CompactGolden : public ::testing::Test {
 protected:
  void SetUp() override {
    bytes_ = golden("block-v1.compact");
    ASSERT_EQ(bytes_.size(), 20480U);
    name_ = {os_->uid(), "golden", "b2e76e991565d420", 1234567890123456789, BlockState::kPublished};
    std::ofstream file(folder_ / name_.file_name(), std::ios::binary);
    file.write(reinterpret_cast<const char*>(bytes_.data()), static_cast<std::streamsize>(bytes_.size()));
    file.close();
    ASSERT_EQ(::chmod((folder_ / name_.file_name()).c_str(), 0400), 0);
  }

  const std::unique_ptr<Os> os_ = make_plain_os();
  testing::TempDirectory folder_;
  std::vector<std::byte> bytes_;
  BlockName name_;
};

TEST_F(CompactGolden, HeaderHasItsValues) {
  const auto header = BlockHeader::decode(std::span(bytes_).first(kPage), bytes_.size());
  ASSERT_TRUE(header) << header.error().message;
  EXPECT_TRUE(header->layout.compact);
  EXPECT_EQ(header->layout.block_size, 20480U);
  EXPECT_EQ(header->layout.payload, (ByteRange{9426, 10'000}));
  EXPECT_EQ(header->layout.manifest, (ByteRange{4096, 304}));
  EXPECT_EQ(header->layout.chunk_table, (ByteRange{4400, 8}));
  EXPECT_EQ(header->generation, 1234567890123456789U);
  EXPECT_EQ(header->broker_boot_id, counting_from(0));
  EXPECT_EQ(header->kernel_boot_id, counting_from(0x40));
  EXPECT_EQ(to_hex(header->digest), "b2e76e991565d420118cae08ff72a840");
  EXPECT_EQ(header->manifest_hash, 0xc46504a9370a67e6U);
  EXPECT_FALSE(header->huge_pages);
}

TEST_F(CompactGolden, WeWriteTheSameHeaderAndPlanTheSameLayout) {
  const auto header = BlockHeader::decode(std::span(bytes_).first(kPage), bytes_.size()).value();
  const auto page = header.encode();
  EXPECT_TRUE(std::equal(page.begin(), page.end(), bytes_.begin()));
  EXPECT_EQ(BlockLayout::plan(10'000, 1234, 304).value(), header.layout);
}

TEST_F(CompactGolden, IsAdopted) {
  const auto where = BlockDirectory::lock(*os_, folder_.path(), "golden");
  ASSERT_TRUE(where) << where.error().message;
  const auto block = Block::adopt(*os_, *where, name_);
  ASSERT_TRUE(block) << block.error().message;
  EXPECT_EQ(block->manifest(), golden_manifest());
  EXPECT_EQ(block->chunk_hashes(*os_).value(), ChunkHashes{0xfcd0ecba1a48462dU});
  const auto verified = testing::verify(*os_, *block);
  EXPECT_TRUE(verified) << verified.error().message;
}

TEST_F(CompactGolden, IsMapped) {
  const Fd fd(::open((folder_ / name_.file_name()).c_str(), O_RDONLY | O_CLOEXEC));
  const auto view = BlockView::map(*os_, fd, Access::kReadOnly);
  ASSERT_TRUE(view) << view.error().message;
  EXPECT_EQ(view->read_manifest().value(), golden_manifest());
  expect_golden_payload(view->payload());
}

TEST(OrdinaryGolden, HeaderHasItsValues) {
  const std::vector<std::byte> page = golden("block-v1.header");
  const auto header = BlockHeader::decode(page, 2'703'228'928);
  ASSERT_TRUE(header) << header.error().message;
  EXPECT_FALSE(header->layout.compact);
  EXPECT_EQ(header->layout.payload, (ByteRange{2'097'160, 2'700'000'123}));
  EXPECT_EQ(header->layout.manifest, (ByteRange{4096, 54321}));
  EXPECT_EQ(header->layout.chunk_table, (ByteRange{58424, 161 * 8}));
  EXPECT_EQ(header->layout.chunk_count(), 161U);
  EXPECT_EQ(header->generation, 42U);
  EXPECT_EQ(header->broker_boot_id, counting_from(0x40));
  EXPECT_EQ(header->kernel_boot_id, counting_from(0));
  EXPECT_EQ(to_hex(header->digest), "448e906fa6fcc809cf200efa746cb4f2");
  EXPECT_EQ(header->manifest_hash, 0x0123456789abcdefU);
  EXPECT_TRUE(header->huge_pages);
  EXPECT_EQ(BlockLayout::plan(2'700'000'123, 8, 54321).value(), header->layout);
  std::vector<std::uint64_t> squares;
  for (std::uint64_t i = 0; i < 161; ++i) squares.push_back(i * i);
  EXPECT_EQ(digest_of(2'700'000'123, squares), header->digest);
  const auto again = header->encode();
  EXPECT_TRUE(std::equal(again.begin(), again.end(), page.begin(), page.end()));
}

}  // namespace
}  // namespace modelbroker
