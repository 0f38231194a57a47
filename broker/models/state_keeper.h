// StateKeeper: writes models and their blocks to the state database, in order, off the broker's thread; with each write
// what has changed in the remembered names.
//
// A database whose files were removed or replaced is made again from what is in memory: noticed after each write,
// before its reply, and by look(). Threads: the loop's. Failure: a write that fails is logged, and all of the state
// written again until that succeeds; the broker goes on meanwhile, since the database holds names only and blocks carry
// their first name themselves.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "broker/base/jobs.h"
#include "broker/models/registry.h"
#include "broker/models/state_db.h"
#include "shm/file_mark.h"

namespace modelbroker {

class StateKeeper {
 public:
  // Whether the folder of the database is this broker's, made again if it was removed; an error: nothing may be
  // written.
  using HoldPlace = std::function<Result<void>()>;

  // `db` is the one at `path`.
  StateKeeper(Os& os, RamBlocks& blocks, Registry& models, Loop& loop, std::string path, std::unique_ptr<StateDb> db,
              HoldPlace hold_place);

  // These models and blocks, by their ids, as they are now; those that are not there any more are forgotten. In one
  // step, with the remembered names that have changed. `then` runs when it is written (or has failed): a reply that
  // must survive a crash waits for it.
  void save(const std::vector<std::string>& models, const std::vector<std::string>& blocks,
            std::function<void()> then = {});
  // `then` runs when all that was asked for so far is written, or has failed.
  void when_written(std::function<void()> then);
  // Once a second or so.
  void look();
  // Waits until everything is written: at a clean stop.
  void flush();

 private:
  [[nodiscard]] ModelRecord record_of(const ModelEntry& model) const;
  [[nodiscard]] StateRecords all_records() const;
  void write_all(std::function<void()> then);
  void written(const Result<void>& outcome, const std::function<void()>& then);
  void lost(std::function<void()> then);
  void failed(const Error& error);

  // On the job thread:
  void mark_files();
  [[nodiscard]] bool in_place() const;
  [[nodiscard]] Result<void> kept(Result<void> written) const;
  [[nodiscard]] Result<void> replace(const StateRecords& all);
  [[nodiscard]] Result<void> open_again();

  Os& os_;
  Loop& loop_;
  RamBlocks& blocks_;
  Registry& models_;
  const std::string path_;
  const HoldPlace hold_place_;
  bool behind_ = false;   // a write failed: only the whole state makes the database right again
  bool again_ = false;    // and a timer will write it
  bool warned_ = false;   // the log says that it failed
  bool looking_ = false;  // a look is under way
  // The job thread's:
  std::unique_ptr<StateDb> db_;
  std::array<FileMark, 3> files_;  // the database, and what SQLite keeps beside it

  Jobs jobs_;  // one thread: writes keep their order
};

}  // namespace modelbroker
