// Loader: a file's way into a block, on job threads.
//
//   directory -> plan -> block -> pages, bytes and hashes, chunk by chunk -> source looked at again -> publish
//
// Threads: load_block() runs on one job thread and starts readers of its own; Progress may be read from
// any thread meanwhile. Failure: typed error that names the file; nothing is left behind.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include "broker/catalog/formats/directory.h"
#include "shm/block.h"

namespace modelbroker {

struct LoadProgress {
  std::atomic<std::uint64_t> total_bytes{0};
  std::atomic<std::uint64_t> read_bytes{0};
  std::atomic<bool> cancelled{false};  // set by anybody: the load ends with `cancelled` at the next chunk
};

struct LoadOptions {
  std::string name;  // first name, for the manifest
  std::string type;
  std::string label;  // the path as the caller said it
  std::uint64_t generation = 0;
  BootId broker_boot_id{};
  bool huge_pages = true;
  unsigned threads = 0;  // 0: one a core, more for a cold file
};

// The size that a block for this directory will have (what admission reserves).
[[nodiscard]] Result<BlockLayout> plan_block(const Directory& directory, const LoadOptions& options);

[[nodiscard]] Result<Block> load_block(Os& os, const BlockDirectory& where, int source_fd, const Directory& directory,
                                       const LoadOptions& options, LoadProgress& progress);

// Hashes the source again and compares it with the block: the answer to "only ctime changed".
[[nodiscard]] Result<bool> same_bytes(Os& os, int source_fd, const Directory& directory, const Block& block,
                                      LoadProgress& progress);

}  // namespace modelbroker
