// Loader: a file's way into a block, on job threads.
//
//   directory -> plan -> block -> pages, bytes and hashes, chunk by chunk -> source looked at again -> publish
//
// A source whose size or mtime changed meanwhile is refused. One of which only ctime, inode or device changed (chmod, a
// link, a rename over it, or a file system that says something new each time) is read again and compared.
// Threads: plan_load() and load_block() run on a job thread, and load_block() starts readers of its own; Progress may
// be read from any thread meanwhile. Failure: typed error that names the file; nothing is left behind.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "broker/formats/directory.h"
#include "broker/ram/memory_facts.h"
#include "shm/block.h"

namespace modelbroker {

struct LoadProgress {
  std::atomic<std::uint64_t> total_bytes{0};
  std::atomic<std::uint64_t> read_bytes{0};
  std::atomic<bool> cancelled{false};  // set by anybody: the load ends with `cancelled` at the next chunk
};

// What a load will make of a file; encoding the manifest of a million tensors takes a while, so it is done once.
struct LoadPlan {
  Directory directory;
  Manifest manifest;
  std::vector<std::byte> encoded;  // the manifest
  BlockLayout layout;              // its block_size is what admission reserves
  std::string label;               // the source, in messages
};
struct LoadIdentity {
  std::string name;  // first name, for the manifest
  std::string type;
  std::string path;               // as the caller said it
  std::string label;              // the same, in messages
  std::optional<BlockSet> set{};  // that it is loaded for
};
[[nodiscard]] Result<LoadPlan> plan_load(Directory directory, const LoadIdentity& identity);

struct LoadSettings {
  std::uint64_t generation = 0;
  BootId broker_boot_id{};
  bool huge_pages = true;
  unsigned threads = 0;               // 0: one a usable CPU, more for a cold file
  std::optional<gid_t> group;         // who may read the block besides us
  std::shared_ptr<BlockGauge> gauge;  // the admission's
  std::optional<Headroom> headroom;   // asked before each chunk
};
struct LoadedBlock {
  Block block;
  FileIdentity source;  // of which the block's bytes were confirmed last
};
[[nodiscard]] Result<LoadedBlock> load_block(Os& os, const BlockDirectory& where, int source_fd, const LoadPlan& plan,
                                             const LoadSettings& settings, LoadProgress& progress);

// Hashes the source, to the first difference, and compares it with the block: the answer to "it is alike".
[[nodiscard]] Result<bool> same_bytes(Os& os, int source_fd, const Directory& directory, const Block& block,
                                      LoadProgress& progress);

}  // namespace modelbroker
