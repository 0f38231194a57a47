// StateKeeper: writes names and pins to the state database, in order, off the broker's thread; with each write what has
// changed in the names of evicted models.
//
// Threads: the loop's. Failure: a write that fails is logged, and all of the state written anew until that succeeds;
// the broker goes on meanwhile, since the database holds names only and blocks carry their first name themselves.
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
  StateKeeper(Loop& loop, const RamStore& store, EvictedNames& evicted, std::unique_ptr<StateDb> db)
      : loop_(loop), store_(store), evicted_(evicted), db_(std::move(db)), jobs_(loop, 1) {}

  // `then` runs when it is written (or has failed): a reply that must survive a crash waits for it.
  void save(const Resident& resident, std::function<void()> then = {});
  // In one step with another whose names or path have changed by it; nullptr: none.
  void save(const Resident& resident, const Resident* other, std::function<void()> then);
  void erase(const std::string& block, std::function<void()> then = {});
  void save_evicted(std::function<void()> then = {});
  // `then` runs when all that was asked for so far is written, or has failed.
  void when_written(std::function<void()> then);
  // Waits until everything is written: at a clean stop.
  void flush();

 private:
  [[nodiscard]] BlockRecord record_of(const Resident& resident) const;
  [[nodiscard]] std::vector<BlockRecord> all_records() const;
  void apply(std::vector<BlockRecord> records, std::vector<std::string> erased, std::function<void()> then);
  void write_all(std::function<void()> then);
  void failed(const Error& error);

  Loop& loop_;
  const RamStore& store_;
  EvictedNames& evicted_;
  std::unique_ptr<StateDb> db_;
  bool behind_ = false;  // a write failed: only the whole state makes the database right again
  bool again_ = false;   // and a timer will write it
  Jobs jobs_;            // one thread: writes keep their order
};

}  // namespace modelbroker
