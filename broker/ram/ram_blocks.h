// RamBlocks: the blocks of the RAM tier, and what is known of their bytes.
//
// A block knows no names: models have it (models/registry.h), and several may share it. One that no model has drains as
// soon as its file can be renamed. This room renames, counts and finds; it reads no file, asks for no lease and frees
// nothing.
// Threads: the loop's only; a Block behind a shared_ptr may be read by a job meanwhile.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "broker/base/clock.h"
#include "shm/block.h"

namespace modelbroker {

// How a block, or a model, came to be there for a request; of a model in several blocks, the highest of theirs.
enum class Outcome : std::uint8_t {
  kResident,  // was there
  kRevived,   // drained, and was wanted again
  kLoaded,    // its file was read
  kAlias,     // was there, and has one name more
};
[[nodiscard]] std::string_view to_string(Outcome outcome) noexcept;

struct RamBlock {
  // A file that has these bytes, as it was when that was last confirmed: it may be newer than the manifest's.
  struct SourceFile {
    std::string path;
    FileIdentity identity;
  };
  explicit RamBlock(Block held) : block(std::make_shared<Block>(std::move(held))), id_(block->id()) {}

  std::shared_ptr<Block> block;
  std::vector<SourceFile> sources;   // never empty; the first is the one that it is told by
  uid_t loader = 0, source_uid = 0;  // users: who loaded it first, whose file it was
  bool is_private = false;           // the group cannot read the source: see Rights
  int models = 0;                    // how many have it: the registry counts them
  int promised = 0;                  // answers under way that hand it out: nobody holds it yet, and it must not go
  bool removing = false;             // its file is being unlinked: cannot be revived
  bool damaged = false;              // likewise: its bytes are not what was loaded, or its file is missing
  bool is_spare = false;             // of a set that is not whole: kept for its next load, and evicted first
  bool adopted = false;              // an earlier broker's: for a while some who hold it may not have told us
  double seconds_to_load = 0;        // as measured, or guessed for an adopted one
  std::optional<TimePoint> checked;  // when its bytes were last known to be right

  [[nodiscard]] const std::string& id() const noexcept { return id_; }
  [[nodiscard]] std::uint64_t generation() const { return block->name().generation; }
  [[nodiscard]] std::uint64_t payload_bytes() const { return block->header().layout.payload.size; }
  [[nodiscard]] std::uint64_t bytes() const { return block->bytes_held(); }
  [[nodiscard]] bool draining() const noexcept { return block->draining(); }
  // No model has it, no answer hands it out, and it is not kept for one.
  [[nodiscard]] bool unwanted() const noexcept { return models == 0 && promised == 0 && !is_spare; }
  [[nodiscard]] const std::string& path() const { return sources.front().path; }
  [[nodiscard]] const FileIdentity& source() const { return sources.front().identity; }
  // Whether it holds the file in exactly this state.
  [[nodiscard]] bool holds(const FileIdentity& file) const;
  // The file at this path was found to have these bytes, and is not the one that it is told by.
  [[nodiscard]] bool is_copy(std::string_view path) const;
  // It is told by the file at this path from now on.
  void tell_by(const std::string& path);

 private:
  std::string id_;
};

class RamBlocks {
 public:
  explicit RamBlocks(Os& os) : os_(os) {}
  RamBlocks(const RamBlocks&) = delete;
  RamBlocks& operator=(const RamBlocks&) = delete;

  RamBlock& add(RamBlock block);
  void erase(const std::string& id);

  [[nodiscard]] RamBlock* find(const std::string& id);
  // The one that holds exactly this source: with a model before without, resident before draining, then the newest.
  // Draining ones count if they can be revived.
  [[nodiscard]] RamBlock* by_source(const FileIdentity& source);
  // Those whose source has this size and mtime, the best first: to be trusted only after it was hashed again.
  [[nodiscard]] std::vector<RamBlock*> alike(const FileIdentity& source);
  [[nodiscard]] std::map<std::string, RamBlock>& all() noexcept { return blocks_; }
  [[nodiscard]] const std::map<std::string, RamBlock>& all() const noexcept { return blocks_; }

  // The file at this path, as it is now, was found to have its bytes.
  void confirm(RamBlock& block, const std::string& path, const FileIdentity& file);
  // Renames it to `.drain`; nothing has changed if that fails.
  [[nodiscard]] Result<void> drain(RamBlock& block);
  [[nodiscard]] Result<void> revive(RamBlock& block) { return block.block->revive(os_); }

  struct Totals {
    std::uint64_t made = 0, draining = 0, removing = 0;  // bytes; `removing`: of `draining`
  };
  [[nodiscard]] Totals totals() const;

 private:
  using Kind = std::pair<std::uint64_t, std::int64_t>;  // a file's size and mtime
  static Kind kind_of(const FileIdentity& file) { return {file.size, file.mtime_ns}; }
  void index(const RamBlock& block);
  void unindex(const RamBlock& block);
  [[nodiscard]] std::vector<RamBlock*> of_kind(const FileIdentity& file);

  Os& os_;
  std::map<std::string, RamBlock> blocks_;        // by id
  std::set<std::pair<Kind, std::string>> kinds_;  // of all their sources
};

}  // namespace modelbroker
