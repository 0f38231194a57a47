// RamStore: the books of the RAM tier: which blocks there are, what they are called, what they cost.
//
// A block is resident (has a name, may be attached) or draining (withdrawn, held by somebody). The store
// renames blocks and counts; it reads no file, asks for no lease and frees nothing.
// Threads: the broker's only; a Block behind a shared_ptr may be read by a job meanwhile.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "broker/base/clock.h"
#include "broker/models/given_name.h"
#include "shm/block.h"

namespace modelbroker {

struct Resident {
  std::shared_ptr<Block> block;
  std::vector<std::string> names;  // the first is the model's; empty while it drains
  std::string type;
  std::string path;                  // the source as it was last named; each name has one of its own, see GivenName
  uid_t loader = 0, source_uid = 0;  // users: who loaded it first, whose file it was
  FileIdentity source;               // of `path`, as last confirmed: it may be newer than the manifest's
  std::map<std::string, FileIdentity> copies;  // other files that were found to have the same bytes, by their paths
  bool is_private = false;                     // the group cannot read the source: see Rights
  bool pinned = false;
  int promised = 0;         // answers under way that hand it out: nobody holds it yet, and it must not go
  bool removing = false;    // its file is being unlinked: cannot be revived
  bool damaged = false;     // likewise: its bytes are not what was loaded, or its file is missing
  Duration keep_alive{-1};  // after its last use, see Expiry; below zero: for ever
  TimePoint last_used;
  bool was_leased = false;           // by this broker
  bool adopted = false;              // an earlier broker's: for a while some who hold it may not have told us
  double seconds_to_load = 0;        // as measured, or guessed for an adopted one
  double value = 0;                  // see eviction.h
  std::optional<TimePoint> checked;  // when its bytes were last known to be right

  // The model's: what a block without names (it drains) was called first.
  [[nodiscard]] const std::string& name() const { return names.empty() ? block->manifest().name : names.front(); }
  [[nodiscard]] bool draining() const noexcept { return block->draining(); }
  [[nodiscard]] std::uint64_t bytes() const { return block->bytes_held(); }
  // Whether it holds the file in exactly this state.
  [[nodiscard]] bool holds(const FileIdentity& file) const;
  // The file at this path, as it is now, was found to have its bytes.
  void confirm(const std::string& file_path, const FileIdentity& file);
};

class RamStore {
 public:
  explicit RamStore(Os& os) : os_(os) {}

  Resident& add(Resident resident);  // its names must be free
  void erase(const std::string& block);

  [[nodiscard]] Resident* by_block(const std::string& block);
  [[nodiscard]] Resident* by_name(std::string_view name);  // resident ones only, as the next two
  // One of whose names was given to the file at that path, which is not only a label.
  [[nodiscard]] Resident* by_path(std::string_view path);
  // By name, or by path if it begins with '/'.
  [[nodiscard]] Resident* find(std::string_view name_or_path);
  // Meaningless for a name that nobody has, as the next.
  [[nodiscard]] const GivenName& given(std::string_view name) const;
  // Who gave a name.
  [[nodiscard]] uid_t loader_of(std::string_view name) const { return given(name).loader; }
  // The block that holds exactly this source (draining ones too, if they can be revived).
  [[nodiscard]] Resident* by_source(const FileIdentity& source);
  // Those whose source has this size and mtime, the best first: to be trusted only after it was hashed again.
  [[nodiscard]] std::vector<Resident*> alike(const FileIdentity& source);

  // already_exists if another block has the name; one that it has already stays as it is.
  [[nodiscard]] Result<void> add_name(Resident& resident, const std::string& name, GivenName given = {});
  // Where the file of a name that a block has lies by now.
  void set_path(const std::string& name, const std::string& path, bool is_label) {
    names_.at(name).given.path = path;
    names_.at(name).given.is_label = is_label;
  }
  // Names that were given to the file at `path` were asked for again.
  void asked_again(const Resident& resident, std::string_view path, std::uint64_t asked);
  void remove_name(Resident& resident, const std::string& name);
  // The names that were given to the file at `path` go to the block of its new generation, which gets the pin too.
  void move_names(Resident& from, Resident& to, std::string_view path);
  // Withdraws all names and renames the block to `.drain`. Kept resident if the rename fails.
  [[nodiscard]] Result<void> drain(Resident& resident);
  [[nodiscard]] Result<void> revive(Resident& resident);

  [[nodiscard]] const std::map<std::string, Resident>& all() const noexcept { return residents_; }

  struct Totals {
    std::uint64_t made = 0, draining = 0, removing = 0, pinned = 0, models = 0;  // `removing`: of `draining`
  };
  [[nodiscard]] Totals totals() const;

 private:
  template <class Predicate>
  [[nodiscard]] Resident* newest(Predicate predicate);
  Os& os_;
  std::map<std::string, Resident> residents_;  // by block id
  struct Named {
    std::string block;
    GivenName given;
  };
  std::map<std::string, Named, std::less<>> names_;
};

}  // namespace modelbroker
