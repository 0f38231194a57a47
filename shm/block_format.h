// The bytes of a block: header, layout and names; docs/block-format.md is the text of this file.
//
// No system calls. Threads: plain values and pure functions. Failure: every parser refuses what the
// document does not allow with data_loss, or unimplemented for a newer format.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "shm/error.h"
#include "shm/manifest.h"

namespace modelbroker {

inline constexpr std::uint64_t kPage = 4096;
inline constexpr std::uint64_t kHugePage = 2ULL << 20;
inline constexpr std::uint64_t kChunkSize = 16ULL << 20;
inline constexpr std::uint64_t kCompactLimit = 4ULL << 20;
inline constexpr std::uint64_t kLargestManifest = 128ULL << 20;
inline constexpr std::uint16_t kBlockFormatVersion = 1;

using Digest = std::array<std::uint8_t, 16>;
using BootId = std::array<std::uint8_t, 16>;
using ChunkHashes = std::vector<std::uint64_t>;

[[nodiscard]] constexpr std::uint64_t round_up(std::uint64_t value, std::uint64_t to) noexcept {
  return (value + to - 1) / to * to;
}
[[nodiscard]] constexpr std::uint64_t round_down(std::uint64_t value, std::uint64_t to) noexcept {
  return value / to * to;
}

// Where everything stands in a block.
struct BlockLayout {
  bool compact = false;
  std::uint64_t block_size = 0;
  ByteRange payload;
  ByteRange manifest;
  ByteRange chunk_table;

  // `phase`: the payload's offset in its source modulo 4096. resource_exhausted if no block can hold it.
  [[nodiscard]] static Result<BlockLayout> plan(std::uint64_t payload_size, std::uint64_t phase,
                                                std::uint64_t manifest_size);
  [[nodiscard]] std::uint32_t chunk_count() const noexcept;
  // Chunk `index` as a range of the block's bytes.
  [[nodiscard]] ByteRange chunk(std::uint32_t index) const noexcept;
  friend bool operator==(const BlockLayout&, const BlockLayout&) = default;
};

struct BlockHeader {
  BlockLayout layout;
  std::uint64_t generation = 0;
  BootId broker_boot_id{};
  BootId kernel_boot_id{};
  Digest digest{};
  std::uint64_t manifest_hash = 0;
  bool huge_pages = false;  // flag bit 0

  // The header page, checksum included.
  [[nodiscard]] std::array<std::byte, kPage> encode() const;
  // Checks everything that the header's page and the file's size can tell.
  [[nodiscard]] static Result<BlockHeader> decode(std::span<const std::byte> page, std::uint64_t file_size);
  friend bool operator==(const BlockHeader&, const BlockHeader&) = default;
};

[[nodiscard]] Digest digest_of(std::uint64_t payload_size, std::span<const std::uint64_t> chunk_hashes);
[[nodiscard]] std::uint64_t hash64(std::span<const std::byte> bytes) noexcept;  // XXH3-64
[[nodiscard]] std::string to_hex(std::span<const std::uint8_t> bytes);

enum class BlockState : std::uint8_t { kTemporary, kPublished, kDraining };

// A block's file name, taken apart.
struct BlockName {
  std::uint32_t uid = 0;
  std::string instance;
  std::string digest16;
  std::uint64_t generation = 0;
  BlockState state = BlockState::kPublished;

  // Name without a state's suffix: what users and peers call the block.
  [[nodiscard]] std::string id() const;
  [[nodiscard]] std::string file_name() const;
  // Nothing if it is not exactly a block's name (other people's files, the lock).
  [[nodiscard]] static std::optional<BlockName> parse(std::string_view file_name);
};
[[nodiscard]] bool valid_instance(std::string_view instance) noexcept;
[[nodiscard]] std::string lock_file_name(std::uint32_t uid, std::string_view instance);

}  // namespace modelbroker
