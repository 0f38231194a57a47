// Makes blocks with a known payload, as a loader would.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "shm/block.h"

namespace modelbroker::testing {

struct BlockRecipe {
  std::uint64_t payload_size = 10'000;
  std::uint64_t phase = 0;
  std::uint64_t generation = 1;
  std::string name = "sample";
  bool huge_pages = true;
};

// All of the block's bytes against its hashes.
[[nodiscard]] inline Result<void> verify(Os& os, const Block& block) {
  const std::atomic<bool> stop = false;
  MODELBROKER_ASSIGN(const ChunkHashes hashes, block.check_contents(os));
  for (std::uint32_t i = 0; i < hashes.size(); ++i) MODELBROKER_TRY(block.check_chunk(os, i, hashes[i], stop));
  return {};
}

// One tensor over all of the payload.
[[nodiscard]] inline Manifest sample_manifest(const BlockRecipe& recipe) {
  Manifest manifest;
  manifest.name = recipe.name;
  manifest.type = "unet";
  manifest.format = "safetensors";
  manifest.source_path = "/models/sample.safetensors";
  manifest.source = {1, 2, recipe.payload_size, 3, 4};
  manifest.metadata = {{"format", "pt"}};
  manifest.tensors = {{"weight", "U8", {recipe.payload_size}, 0, recipe.payload_size}};
  return manifest;
}

[[nodiscard]] inline std::byte payload_byte(std::uint64_t index) {
  return static_cast<std::byte>((index * 0x9E3779B97F4A7C15ULL) >> 56U);
}

[[nodiscard]] inline ChunkHashes hash_chunks(BlockWriter& writer) {
  ChunkHashes hashes;
  for (std::uint32_t i = 0; i < writer.layout().chunk_count(); ++i) {
    const ByteRange chunk = writer.layout().chunk(i);
    hashes.push_back(hash64(writer.bytes().subspan(chunk.offset, chunk.size)));
  }
  return hashes;
}

[[nodiscard]] inline BlockPlan plan_of(const BlockRecipe& recipe, std::uint64_t manifest_size) {
  BlockPlan plan;
  plan.payload_size = recipe.payload_size;
  plan.phase = recipe.phase;
  plan.manifest_size = manifest_size;
  plan.generation = recipe.generation;
  plan.broker_boot_id = {1, 2, 3};
  plan.huge_pages = recipe.huge_pages;
  return plan;
}

[[nodiscard]] inline Result<Block> make_block(Os& os, const BlockDirectory& where, const BlockRecipe& recipe = {}) {
  const Manifest manifest = sample_manifest(recipe);
  const std::vector<std::byte> encoded = manifest.encode();
  MODELBROKER_ASSIGN(BlockWriter writer, BlockWriter::create(os, where, plan_of(recipe, encoded.size())));
  const BlockLayout layout = writer.layout();
  MODELBROKER_TRY(writer.make_pages(layout.payload));
  const std::span<std::byte> payload = writer.payload();
  for (std::uint64_t i = 0; i < payload.size(); ++i) payload[i] = payload_byte(i);
  const ChunkHashes hashes = hash_chunks(writer);
  return std::move(writer).publish(manifest, encoded, hashes);
}

// Index of the first byte that is not as make_block wrote it; the size if there is none.
[[nodiscard]] inline std::uint64_t first_difference(std::span<const std::byte> payload) {
  std::uint64_t i = 0;
  while (i < payload.size() && payload[i] == payload_byte(i)) ++i;
  return i;
}

}  // namespace modelbroker::testing
