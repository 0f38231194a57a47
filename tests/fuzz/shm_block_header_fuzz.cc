// A block's header page: refused with a typed error, or every part lies where the document allows.
// Input: the file's size (u64), then the page; what is missing of it is zero.
#include <xxhash.h>

#include <array>

#include "shm/block_format.h"
#include "tests/support/fuzz.h"

namespace modelbroker {
namespace {

using testing::require;

constexpr std::size_t kChecked = 144;  // docs/block-format.md

void check(const BlockHeader& header, std::uint64_t file_size) {
  const BlockLayout& layout = header.layout;
  require(layout.block_size == file_size, "the block is the file");
  for (const ByteRange& part : {layout.payload, layout.manifest, layout.chunk_table}) {
    require(part.offset <= file_size && part.size <= file_size - part.offset, "a part lies in the block");
    require(part.size == 0 || part.offset >= kPage, "a part lies behind the header");
  }
  require(layout.manifest.size <= kLargestManifest, "a manifest can be read");
  // The chunks tile the payload.
  std::uint64_t at = layout.payload.offset;
  const std::uint32_t count = layout.chunk_count();
  for (std::uint32_t i = 0; i < std::min(count, 1000U); ++i) {
    const ByteRange chunk = layout.chunk(i);
    require(chunk.offset == at && chunk.size > 0 && chunk.size <= kChunkSize, "chunks follow each other");
    at = chunk.end();
  }
  if (count > 0) require(layout.chunk(count - 1).end() == layout.payload.end(), "chunks end with the payload");
  const auto again = BlockHeader::decode(header.encode(), file_size);
  require(again.has_value() && *again == header, "a header survives its encoding");
}

void decode(std::span<const std::byte> page, std::uint64_t file_size) {
  const auto header = BlockHeader::decode(page, file_size);
  if (header) return check(*header, file_size);
  require(header.error().code == ErrorCode::kDataLoss || header.error().code == ErrorCode::kUnimplemented,
          "damage is data_loss, a newer format unimplemented");
  testing::require_presentable(header.error());
}

void honest_header_is_read() {
  BlockHeader header;
  header.layout = BlockLayout::plan(40'000'000, 123, 5000).value();
  const auto decoded = BlockHeader::decode(header.encode(), header.layout.block_size);
  require(decoded.has_value() && *decoded == header, "an honest header is read");
}

}  // namespace
}  // namespace modelbroker

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace modelbroker;
  testing::Input input(data, size);
  const auto file_size = input.number<std::uint64_t>();
  std::array<std::byte, kPage> page{};
  const auto bytes = input.bytes(page.size());
  std::ranges::copy(bytes, page.begin());
  decode(bytes, file_size);
  decode(page, file_size);
  // With the checksum put right, so that what lies behind it is reached.
  XXH128_canonical_t checksum;
  XXH128_canonicalFromHash(&checksum, XXH3_128bits(page.data(), kChecked));
  std::memcpy(page.data() + kChecked, checksum.digest, sizeof checksum.digest);
  decode(page, file_size);
  honest_header_is_read();
  return 0;
}
