// StateKeeper: writes names and pins to the state database, in order, off the broker's thread.
//
// Threads: the loop's. Failure: a write that fails is logged; the broker goes on, since the database
// holds names only and blocks carry their first name themselves.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "broker/ram/state_db.h"
#include "broker/ram/store.h"
#include "broker/server/jobs.h"

namespace modelbroker {

class StateKeeper {
 public:
  StateKeeper(Loop& loop, const RamStore& store, std::unique_ptr<StateDb> db)
      : store_(store), db_(std::move(db)), jobs_(loop, 1) {}

  // `then` runs when it is written (or has failed): a reply that must survive a crash waits for it.
  void save(const Resident& resident, std::function<void()> then = {});
  void erase(const std::string& block, std::function<void()> then = {});
  // Waits until everything is written: at a clean stop.
  void flush() { jobs_.drain(); }

 private:
  void apply(std::vector<BlockRecord> records, std::vector<std::string> erased, std::function<void()> then);
  const RamStore& store_;
  std::unique_ptr<StateDb> db_;
  Jobs jobs_;  // one thread: writes keep their order
};

}  // namespace modelbroker
