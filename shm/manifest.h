// Manifest: the list of a block's tensors and where they came from; docs/block-format.md.
//
// The only description of weights that crosses a process. Offsets count from the payload's first byte.
// Threads: plain values. Failure: decode() refuses what contradicts itself as data_loss, and what a later version may
// have written as unimplemented: such a block stays. Memory is bounded; it never reads outside `bytes`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "shm/error.h"

namespace modelbroker {

struct ByteRange {
  std::uint64_t offset = 0;
  std::uint64_t size = 0;
  [[nodiscard]] std::uint64_t end() const noexcept { return offset + size; }
  friend bool operator==(const ByteRange&, const ByteRange&) = default;
};

// Which file, and which state of it. File systems differ in what they keep: some number inodes at each look, some say
// "now" for the ctime. Only an identity that is equal as a whole is trusted; one that is alike (same size and mtime)
// may be the same file, and its bytes must be hashed to know.
struct FileIdentity {
  std::uint64_t device = 0;
  std::uint64_t inode = 0;
  std::uint64_t size = 0;
  std::int64_t mtime_ns = 0;
  std::int64_t ctime_ns = 0;
  friend bool operator==(const FileIdentity&, const FileIdentity&) = default;
  [[nodiscard]] bool same_but_ctime(const FileIdentity& other) const noexcept {
    return device == other.device && inode == other.inode && alike(other);
  }
  [[nodiscard]] bool alike(const FileIdentity& other) const noexcept {
    return size == other.size && mtime_ns == other.mtime_ns;
  }
};

struct TensorEntry {
  std::string name;
  std::string dtype;                 // the safetensors word, e.g. "BF16"; shm/dtype.h
  std::vector<std::uint64_t> shape;  // row-major; empty for a scalar
  std::uint64_t offset = 0;          // bytes from the payload's start
  std::uint64_t size = 0;            // bytes
  friend bool operator==(const TensorEntry&, const TensorEntry&) = default;
};

// One source file of a model that has several.
struct SetPart {
  std::string name;  // beside the others
  std::uint64_t device = 0, inode = 0, size = 0;
  std::int64_t mtime_ns = 0;
  friend bool operator==(const SetPart&, const SetPart&) = default;
};

// The set that a block was made for: all blocks of one set list the same parts, so that the model can be put together
// again from the blocks alone.
struct BlockSet {
  static constexpr std::size_t kMaxParts = 4096;
  static constexpr std::string_view kIndexSuffix = ".safetensors.index.json";  // of the file that lists them
  std::string id;           // the path of the file that lists them, as the caller said it
  std::uint64_t index = 0;  // which of the parts this block holds
  std::vector<SetPart> parts;
  friend bool operator==(const BlockSet&, const BlockSet&) = default;
};

struct Manifest {
  std::string name;
  std::string type;
  std::string format;
  std::string source_path;
  FileIdentity source;  // all zero, with an empty path: it was not read from a file
  std::optional<BlockSet> set;
  std::map<std::string, std::string> metadata;
  std::vector<TensorEntry> tensors;
  friend bool operator==(const Manifest&, const Manifest&) = default;

  [[nodiscard]] bool has_source() const { return !source_path.empty() || source != FileIdentity{}; }
  // Tensors come out in the order of their offsets, whatever order they stand in here.
  [[nodiscard]] std::vector<std::byte> encode() const;
  // Checks the format, unique names, dtypes, sizes that fit a known dtype and its shape, order, and that every
  // tensor lies inside a payload of `payload_size` bytes.
  [[nodiscard]] static Result<Manifest> decode(std::span<const std::byte> bytes, std::uint64_t payload_size);
};

}  // namespace modelbroker
