// Recovery: what an earlier broker left in the RAM directory becomes this one's.
//
// Blocks from their names, headers and manifests; models, names and pins from the state database. What still bears
// `.tmp` is garbage; `.drain` goes on draining. Names of which a block is not there any more, or may not be given out,
// are remembered. Threads: at start, before the loop runs.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "broker/base/environment.h"
#include "broker/models/registry.h"
#include "broker/models/state_db.h"
#include "broker/ram/ram_store.h"
#include "broker/workers/rights.h"

namespace modelbroker {

struct Recovered {
  std::size_t adopted = 0, draining = 0, garbage = 0;        // blocks
  std::vector<std::string> superseded;                       // resident blocks that no model has: to be drained
  std::vector<std::string> models, blocks;                   // other than the database knows them: to be written
  std::vector<std::pair<std::string, std::string>> damaged;  // removed blocks, and what was wrong
};
// Where it puts them.
struct AdoptInto {
  const Environment& env;
  const Rights& rights;
  RamStore& ram;
  Registry& models;
};
[[nodiscard]] Result<Recovered> adopt_blocks(const AdoptInto& into, const StateRecords& records);

}  // namespace modelbroker
