// StateDb: models with their names and pins, confirmed sources of blocks, and remembered names, kept over a broker's
// death.
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

#include "broker/models/given_name.h"
#include "broker/models/remembered_names.h"
#include "shm/error.h"

namespace modelbroker {

struct BlockRecord {
  std::string block;
  bool damaged = false;  // withdrawn since its bytes are not its source's
  std::int64_t ctime_ns = 0;
  std::uint32_t loader = 0, source_uid = 0;  // users: who loaded it, whose file it was
};

struct ModelRecord {
  std::string id;
  std::vector<std::string> blocks{};  // of its parts, in their order
  std::vector<std::string> names{};
  std::vector<GivenName> given{};  // of each name
  std::string type{}, path{};
  bool pinned = false;
  std::int64_t keep_alive_ns = -1;
};

// All that is known, or what is known from now on of some.
struct StateRecords {
  std::vector<BlockRecord> blocks{};
  std::vector<ModelRecord> models{};
  std::vector<RememberedNames::Named> remembered{};  // in the order of eviction
  // What is forgotten: ids, and names.
  std::vector<std::string> gone_blocks{}, ended_models{}, forgotten_names{};
};

class StateDb {
 public:
  struct Opened {
    std::unique_ptr<StateDb> db;
    StateRecords records;
    std::string warning;  // why the old file was moved aside, if it was
  };
  [[nodiscard]] static Result<Opened> open(const std::string& path);
  ~StateDb();

  // In one transaction.
  [[nodiscard]] Result<void> apply(const StateRecords& changes);
  // All that is known from now on.
  [[nodiscard]] Result<void> replace(const StateRecords& all);

 private:
  struct Impl;
  template <class Change>
  [[nodiscard]] Result<void> change(Change what);
  explicit StateDb(std::unique_ptr<Impl> impl) noexcept;
  std::unique_ptr<Impl> impl_;
};

}  // namespace modelbroker
