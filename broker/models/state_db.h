// StateDb: names, pins and confirmed sources of blocks, and the names of evicted ones, kept over a broker's death.
//
// The truth about bytes is in the blocks; this is the truth about intent. Losing it costs names, never
// blocks. A damaged file, or one of another version, is moved aside and a new one begun.
// Threads: one at a time (the broker's state job). Failure: internal or resource_exhausted (disk full);
// the file stays as it was.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "broker/models/evicted.h"
#include "broker/models/given_name.h"
#include "shm/error.h"

namespace modelbroker {

struct BlockRecord {
  std::string block;
  std::vector<std::string> names;
  std::string type, path;
  bool pinned = false;
  bool damaged = false;  // withdrawn since its bytes are not its source's
  std::int64_t ctime_ns = 0;
  std::int64_t keep_alive_ns = -1;
  std::uint32_t loader = 0, source_uid = 0;  // users: who loaded it, whose file it was
  std::vector<GivenName> given{};            // of each name; where one is missing, loader and path of the block
};

class StateDb {
 public:
  struct Opened {
    std::unique_ptr<StateDb> db;
    std::vector<BlockRecord> records;
    std::vector<EvictedNames::Named> evicted;  // in the order of eviction
    std::string warning;                       // why the old file was moved aside, if it was
  };
  [[nodiscard]] static Result<Opened> open(const std::string& path);
  ~StateDb();

  // What is known of these blocks and evicted names from now on, in one transaction; `erased` are forgotten.
  [[nodiscard]] Result<void> apply(const std::vector<BlockRecord>& records, const std::vector<std::string>& erased,
                                   const EvictedNames::Changes& evicted = {});
  // All that is known from now on.
  [[nodiscard]] Result<void> replace(const std::vector<BlockRecord>& records,
                                     const std::vector<EvictedNames::Named>& evicted = {});

 private:
  struct Impl;
  template <class Change>
  [[nodiscard]] Result<void> change(Change what);
  explicit StateDb(std::unique_ptr<Impl> impl) noexcept;
  std::unique_ptr<Impl> impl_;
};

}  // namespace modelbroker
