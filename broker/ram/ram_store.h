// RamStore: the blocks in RAM, the folder that they lie in, and their budget. Threads: the loop's only; no I/O.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "broker/ram/ram_blocks.h"
#include "broker/tier/budget.h"
#include "broker/workers/rights.h"
#include "shm/block.h"

namespace modelbroker {

struct RamStore {
  RamStore(Os& os, BlockDirectory directory_) : directory(std::move(directory_)), blocks(os) {}

  BlockDirectory directory;
  RamBlocks blocks;
  Budget budget{0};
  // Blocks of this instance that a later version left: not read, not freed.
  struct Foreign {
    std::uint64_t blocks = 0, bytes = 0;
  } foreign;
  std::uint64_t highest_generation = 0;

  // Never the same twice, not even over a restart: CLOCK_BOOTTIME only grows while blocks live.
  [[nodiscard]] std::uint64_t new_generation(Os& os) {
    return highest_generation = std::max(os.boottime_ns(), highest_generation + 1);
  }
};

[[nodiscard]] inline bool may_attach(const Rights& rights, uid_t uid, const RamBlock& block) {
  return rights.attach(uid, {block.loader, block.source_uid, block.is_private});
}

}  // namespace modelbroker
