// What a broker answers, as plain values; docs/protocol.md has the meaning of each field.
//
// Threads: values. Sizes are bytes.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace modelbroker {

// A block of a model: one for each of its files.
struct ModelBlock {
  std::string block, path, source;  // its name, where it can be mapped, and the file that was read
  std::uint64_t generation = 0, bytes = 0, payload_bytes = 0;
  std::string page_kind;
};

struct Loaded {
  std::string model;                // its name
  std::string block;                // empty where it has several
  std::uint64_t generation = 0;     // the highest of its blocks
  std::uint64_t bytes = 0;          // that its blocks hold
  std::uint64_t payload_bytes = 0;  // of weights
  std::string page_kind;            // "2MiB" or "4KiB"
  std::string outcome;              // "loaded", "resident", "joined", ...
  double seconds = 0;
  std::vector<ModelBlock> blocks;
};

struct Unloaded {
  std::string model;
  std::uint64_t freed = 0;
  std::uint64_t draining = 0;                // goes when its last holder lets go
  std::vector<std::string> remaining_names;  // not empty: the weights stay under these
};

struct Holder {
  std::uint64_t pid = 0, uid = 0;
};

struct Model {
  std::string name;
  std::vector<std::string> aliases;
  std::string type, format, path, state, block;
  std::uint64_t generation = 0, bytes = 0, payload_bytes = 0, loaded_bytes = 0;
  std::uint64_t tensors = 0;  // how many
  std::string page_kind;
  bool pinned = false;
  std::vector<Holder> leases;
  std::vector<ModelBlock> blocks;
};

// The books of a tier ("ram").
struct Tier {
  std::uint64_t limit = 0, reserved = 0, made = 0, draining = 0, pinned = 0, leased = 0;  // bytes
  std::uint64_t models = 0, leases = 0, hits = 0, misses = 0, loads = 0, evictions = 0;   // counts
  std::uint64_t foreign = 0, foreign_blocks = 0;  // bytes and count of blocks of another version
};

struct Status {
  std::string boot_id, version, instance, ram_directory, page_kind;
  std::uint64_t pid = 0, uptime_ms = 0, sessions = 0;
  std::map<std::string, bool> features;  // of the kernel
  std::map<std::string, Tier> tiers;
};

}  // namespace modelbroker
