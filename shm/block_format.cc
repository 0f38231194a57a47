#include "shm/block_format.h"

#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <cstring>

namespace modelbroker {
namespace {

static_assert(std::endian::native == std::endian::little, "blocks are little-endian");

constexpr std::array<char, 8> kMagic{'M', 'B', 'R', 'O', 'K', 'E', 'R', '1'};
constexpr std::size_t kCheckedBytes = 144;
constexpr std::uint64_t kFlagHugePages = 1;
constexpr std::uint64_t kLargest = 1ULL << 55;  // its chunks can be counted in 32 bits
constexpr std::string_view kPrefix = "modelbroker.";

// The first 160 bytes of a block, as they lie in memory.
struct RawHeader {
  std::array<char, 8> magic;
  std::uint16_t format_version, min_reader_version;
  std::uint32_t header_size;
  std::uint64_t block_size, payload_offset, payload_size, manifest_offset, manifest_size, chunk_table_offset;
  std::uint32_t chunk_count, chunk_size;
  std::uint64_t generation;
  BootId broker_boot_id, kernel_boot_id;
  Digest digest;
  std::uint64_t manifest_hash, flags;
  std::array<std::uint8_t, 16> checksum;
};
static_assert(sizeof(RawHeader) == 160 && offsetof(RawHeader, block_size) == 16 &&
              offsetof(RawHeader, chunk_count) == 64 && offsetof(RawHeader, generation) == 72 &&
              offsetof(RawHeader, digest) == 112 && offsetof(RawHeader, manifest_hash) == 128 &&
              offsetof(RawHeader, checksum) == kCheckedBytes && std::is_trivially_copyable_v<RawHeader>);

std::array<std::uint8_t, 16> canonical(XXH128_hash_t hash) {
  XXH128_canonical_t bytes;
  XXH128_canonicalFromHash(&bytes, hash);
  std::array<std::uint8_t, 16> out{};
  std::memcpy(out.data(), bytes.digest, out.size());
  return out;
}

std::array<std::uint8_t, 16> checksum_of(const RawHeader& raw) { return canonical(XXH3_128bits(&raw, kCheckedBytes)); }

// What lies behind the header: the metadata's size with the chunk table at a multiple of 8.
struct Metadata {
  std::uint64_t chunk_table = 0, end = 0;  // offsets from the manifest's start
};
Metadata metadata(std::uint64_t manifest_size, std::uint64_t chunks) {
  const std::uint64_t table = round_up(manifest_size, 8);
  return {table, table + chunks * 8};
}

std::uint64_t chunks_of(std::uint64_t phase, std::uint64_t payload_size) {
  return payload_size == 0 ? 0 : (phase + payload_size + kChunkSize - 1) / kChunkSize;
}

bool overlap(const ByteRange& a, const ByteRange& b) {
  return a.size > 0 && b.size > 0 && a.offset < b.end() && b.offset < a.end();
}

Result<void> check_layout(const BlockLayout& layout) {
  const auto bad = [](const char* why) { return fail(ErrorCode::kDataLoss, std::string("block header: ") + why); };
  const ByteRange header{0, kPage};
  for (const ByteRange& range : {layout.payload, layout.manifest, layout.chunk_table}) {
    if (range.offset > layout.block_size || range.size > layout.block_size - range.offset) {
      return bad("a part lies outside the block");
    }
    if (overlap(range, header)) return bad("a part overlaps the header");
  }
  if (overlap(layout.payload, layout.manifest) || overlap(layout.payload, layout.chunk_table) ||
      overlap(layout.manifest, layout.chunk_table)) {
    return bad("parts overlap");
  }
  if (layout.manifest.size > kLargestManifest) return bad("the manifest is too large");
  if (layout.chunk_table.offset % 8 != 0 || layout.manifest.offset % 8 != 0) return bad("a part is not aligned");
  return {};
}

template <class Number>
bool take_number(std::string_view& text, Number& number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  const auto length = static_cast<std::size_t>(end - text.data());
  // Only the one spelling that we write: no sign, no leading zero.
  if (error != std::errc() || length == 0 || (length > 1 && text.front() == '0')) return false;
  text.remove_prefix(length);
  return true;
}

bool take(std::string_view& text, std::string_view word) {
  if (!text.starts_with(word)) return false;
  text.remove_prefix(word.size());
  return true;
}

}  // namespace

Result<BlockLayout> BlockLayout::plan(std::uint64_t payload_size, std::uint64_t phase, std::uint64_t manifest_size) {
  if (phase >= kPage) return fail(ErrorCode::kInvalidArgument, "a block's phase is less than a page");
  if (payload_size > kLargest || manifest_size > kLargestManifest) {
    return fail(ErrorCode::kResourceExhausted, "no block can hold " + std::to_string(payload_size) +
                                                   " bytes of weights and a manifest of " +
                                                   std::to_string(manifest_size));
  }
  const std::uint64_t chunks = chunks_of(phase, payload_size);
  const Metadata parts = metadata(manifest_size, chunks);
  BlockLayout layout;
  const auto place = [&](std::uint64_t manifest_at, std::uint64_t payload_at) {
    layout.manifest = {manifest_at, manifest_size};
    layout.chunk_table = {manifest_at + parts.chunk_table, chunks * 8};
    layout.payload = {payload_at + phase, payload_size};
  };
  const std::uint64_t compact_payload = round_up(kPage + parts.end, kPage);
  const std::uint64_t compact_size = round_up(compact_payload + phase + payload_size, kPage);
  if (compact_size < kCompactLimit) {
    place(kPage, compact_payload);
    layout.compact = true;
    layout.block_size = compact_size;
  } else if (kPage + parts.end <= kHugePage) {
    place(kPage, kHugePage);
    layout.block_size = round_up(layout.payload.end(), kHugePage);
  } else {
    const std::uint64_t behind = round_up(kHugePage + phase + payload_size, kHugePage);
    place(behind, kHugePage);
    layout.block_size = round_up(behind + parts.end, kHugePage);
  }
  return layout;
}

std::uint32_t BlockLayout::chunk_count() const noexcept { return static_cast<std::uint32_t>(chunk_table.size / 8); }

ByteRange BlockLayout::chunk(std::uint32_t index) const noexcept {
  const std::uint64_t base = round_down(payload.offset, kPage) + std::uint64_t{index} * kChunkSize;
  const std::uint64_t begin = std::max(base, payload.offset);
  return {begin, std::min(base + kChunkSize, payload.end()) - begin};
}

std::array<std::byte, kPage> BlockHeader::encode() const {
  RawHeader raw{};
  raw.magic = kMagic;
  raw.format_version = raw.min_reader_version = kBlockFormatVersion;
  raw.header_size = static_cast<std::uint32_t>(kPage);
  raw.block_size = layout.block_size;
  raw.payload_offset = layout.payload.offset;
  raw.payload_size = layout.payload.size;
  raw.manifest_offset = layout.manifest.offset;
  raw.manifest_size = layout.manifest.size;
  raw.chunk_table_offset = layout.chunk_table.offset;
  raw.chunk_count = layout.chunk_count();
  raw.chunk_size = static_cast<std::uint32_t>(kChunkSize);
  raw.generation = generation;
  raw.broker_boot_id = broker_boot_id;
  raw.kernel_boot_id = kernel_boot_id;
  raw.digest = digest;
  raw.manifest_hash = manifest_hash;
  raw.flags = huge_pages ? kFlagHugePages : 0;
  raw.checksum = checksum_of(raw);
  std::array<std::byte, kPage> page{};
  std::memcpy(page.data(), &raw, sizeof raw);
  return page;
}

Result<BlockHeader> BlockHeader::decode(std::span<const std::byte> page, std::uint64_t file_size) {
  const auto bad = [](const std::string& why) { return fail(ErrorCode::kDataLoss, "block header: " + why); };
  RawHeader raw{};
  if (page.size() < kPage || file_size < kPage) return bad("the file is shorter than a header");
  std::memcpy(&raw, page.data(), sizeof raw);
  if (raw.magic != kMagic) return bad("the magic is not MBROKER1");
  if (raw.min_reader_version > kBlockFormatVersion) {
    return fail(ErrorCode::kUnimplemented, "block header: format " + std::to_string(raw.format_version) +
                                               " needs a newer modelbroker (this one reads " +
                                               std::to_string(kBlockFormatVersion) + ")");
  }
  if (raw.checksum != checksum_of(raw)) return bad("the checksum does not agree");
  if (raw.header_size != kPage || raw.chunk_size != kChunkSize) return bad("a fixed size differs");
  if (raw.block_size != file_size) {
    return bad("the block should have " + std::to_string(raw.block_size) + " bytes and has " +
               std::to_string(file_size));
  }
  BlockHeader header;
  header.layout.compact = raw.block_size < kCompactLimit;
  header.layout.block_size = raw.block_size;
  header.layout.payload = {raw.payload_offset, raw.payload_size};
  header.layout.manifest = {raw.manifest_offset, raw.manifest_size};
  header.layout.chunk_table = {raw.chunk_table_offset, std::uint64_t{raw.chunk_count} * 8};
  MODELBROKER_TRY(check_layout(header.layout));
  if (raw.chunk_count != chunks_of(raw.payload_offset % kPage, raw.payload_size)) {
    return bad("the number of chunks does not fit the payload");
  }
  header.generation = raw.generation;
  header.broker_boot_id = raw.broker_boot_id;
  header.kernel_boot_id = raw.kernel_boot_id;
  header.digest = raw.digest;
  header.manifest_hash = raw.manifest_hash;
  header.huge_pages = (raw.flags & kFlagHugePages) != 0;
  return header;
}

Digest digest_of(std::uint64_t payload_size, std::span<const std::uint64_t> chunk_hashes) {
  std::vector<std::uint64_t> words;
  words.reserve(chunk_hashes.size() + 1);
  words.push_back(payload_size);
  words.insert(words.end(), chunk_hashes.begin(), chunk_hashes.end());
  return canonical(XXH3_128bits(words.data(), words.size() * sizeof(std::uint64_t)));
}

std::uint64_t hash64(std::span<const std::byte> bytes) noexcept { return XXH3_64bits(bytes.data(), bytes.size()); }

std::string to_hex(std::span<const std::uint8_t> bytes) {
  static constexpr std::string_view kDigits = "0123456789abcdef";
  std::string text(bytes.size() * 2, '0');
  auto digit = text.begin();
  for (const std::uint8_t byte : bytes) {
    *digit++ = kDigits[byte >> 4U];
    *digit++ = kDigits[byte & 15U];
  }
  return text;
}

std::string BlockName::id() const {
  return std::string(kPrefix) + std::to_string(uid) + "." + instance + "." + digest16 + ".g" +
         std::to_string(generation);
}

std::string BlockName::file_name() const {
  switch (state) {
    case BlockState::kTemporary:
      return id() + ".tmp";
    case BlockState::kDraining:
      return id() + ".drain";
    case BlockState::kPublished:
      break;
  }
  return id();
}

std::optional<BlockName> BlockName::parse(std::string_view file_name) {
  BlockName name;
  if (!take(file_name, kPrefix) || !take_number(file_name, name.uid) || !take(file_name, ".")) return std::nullopt;
  const auto dot = file_name.find('.');
  if (dot == std::string_view::npos || !valid_instance(file_name.substr(0, dot))) return std::nullopt;
  name.instance = file_name.substr(0, dot);
  file_name.remove_prefix(dot + 1);
  name.digest16 = file_name.substr(0, 16);
  const bool hex = name.digest16.size() == 16 && std::ranges::all_of(name.digest16, [](char c) {
                     return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
                   });
  if (!hex) return std::nullopt;
  file_name.remove_prefix(16);
  if (!take(file_name, ".g") || !take_number(file_name, name.generation)) return std::nullopt;
  if (file_name == ".tmp") {
    name.state = BlockState::kTemporary;
  } else if (file_name == ".drain") {
    name.state = BlockState::kDraining;
  } else if (!file_name.empty()) {
    return std::nullopt;
  }
  return name;
}

bool valid_instance(std::string_view instance) noexcept {
  return !instance.empty() && instance.size() <= 32 && std::ranges::all_of(instance, [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || c == '-';
  });
}

std::string lock_file_name(std::uint32_t uid, std::string_view instance) {
  return std::string(kPrefix) + std::to_string(uid) + "." + std::string(instance) + ".lock";
}

}  // namespace modelbroker
