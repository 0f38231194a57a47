// BlockLoads: from open files to blocks in RAM.
//
//   header and plan (job) -> alike: compare (job) -> admission of the sum -> load_block (job) -> books
//
// A batch is what one ask wants: a file, or all files of a model. A flight is the load of one file; batches that want
// the same file share it, and the first of them leads: it asks for the room, once for the sum of what it leads and
// lacks. A flight that no batch wants is cancelled. A file of which size and mtime are those of a resident block's
// source, and the rest is not, is hashed and compared before it is loaded: some file systems number inodes at each
// look. Behind a running flight of such a file a flight parks until that one has ended. Each uid has job threads of its
// own: a read that hangs is its asker's trouble. A flight runs on the threads of any who wants it. It knows no names:
// what events say of a batch is told to it. (block_loads.cc: the batches; flights.cc: the flights; comparing.cc:
// whether a flight's file is one that is resident.) Threads: the loop's; jobs do the reading.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "broker/base/environment.h"
#include "broker/base/event_sink.h"
#include "broker/base/jobs.h"
#include "broker/ram/load_notes.h"
#include "broker/ram/loader.h"
#include "broker/ram/reaper.h"
#include "broker/ram/scrubber.h"
#include "broker/ram/source_look.h"
#include "broker/tier/admission.h"

namespace modelbroker {

class BlockLoads {
 public:
  using Id = std::uint64_t;
  struct Want {  // one file
    Fd file;
    Look look;              // what was found of it
    LoadIdentity identity;  // for the manifest, and messages
    uid_t loader = 0;       // whom the block will count as loaded by
  };
  struct Got {
    RamBlock* block = nullptr;
    Outcome how = Outcome::kResident;
  };
  struct Done {
    Result<std::vector<Got>> blocks;  // in the order of the files
    bool is_told = false;             // events said that it is loading
  };
  struct Ask {
    uid_t uid = 0;
    std::vector<Want> wants;
    std::optional<TimePoint> until;  // how long it may wait for room
    std::string model, path;         // by which events tell of it
    // Whether a block of other files that turned out to have the same bytes is for the asker.
    std::function<bool(const RamBlock&)> may_have;
    // Asked before anything is loaded: what is alike turned out to be other files.
    std::function<Result<void>()> may_load;
    std::function<void(Done)> done;  // on the loop's thread, unless it is given up before
  };

  BlockLoads(Environment& env, RamStore& ram, const Rights& rights, Loop& loop, Reaper& reaper, Admission& admission,
             Scrubber& scrubber, EventSink& events, LoadNotes& notes)
      : env_(env),
        ram_(ram),
        rights_(rights),
        loop_(loop),
        reaper_(reaper),
        admission_(admission),
        scrubber_(scrubber),
        events_(events),
        notes_(notes) {}

  // The threads on which files of this user are looked at and read.
  [[nodiscard]] Jobs& jobs_of(uid_t uid);
  // The block that holds this source, resident again if it drained; else without a block.
  [[nodiscard]] Got usable(const FileIdentity& source);
  // Whether a flight of that very file is under way.
  [[nodiscard]] bool is_under_way(const FileIdentity& source) const { return flight_of(source) != nullptr; }
  Id want(Ask ask);
  // `done` is not called any more; idempotent.
  void give_up(Id id);
  // Cancels everything and waits so long for the jobs; false if one hangs.
  [[nodiscard]] bool stop(std::chrono::milliseconds patience);

  struct Running {
    std::string model, path, type;
    uid_t uid = 0;
    bool is_private = false;
    std::uint64_t total_bytes = 0, read_bytes = 0;
  };
  // The batches that lead a flight.
  [[nodiscard]] std::vector<Running> running() const;

 private:
  struct Flight;
  using FlightPtr = std::shared_ptr<Flight>;
  struct Part {
    FlightPtr flight;   // until its block is there
    std::string block;  // then; it is promised to the batch
    Outcome how = Outcome::kResident;
    std::string path;
  };
  struct Batch {
    Id id = 0;
    Ask ask;  // its `wants` are taken
    std::vector<Part> parts;
    std::optional<Admission::Id> asked;  // while it waits for its admission
    std::optional<Admission::Id> place;  // the same, and afterwards
    std::optional<TimePoint> until;  // of the ask: when one who shares a flight of it must hear that there is no room
    bool is_private = false;
    bool is_told = false;   // events say that it is loading
    bool may_load = false;  // it was asked, see Ask
  };
  using BatchPtr = std::shared_ptr<Batch>;
  enum class Phase : std::uint8_t {
    kLooking,  // its header is read, or it is compared
    kParked,   // behind a flight whose file may be the same
    kPlanned,  // it waits for room
    kReading,
  };
  struct Flight {
    Want want;
    LoadNotes::Source noted;
    std::vector<BatchPtr> batches;     // the first leads
    std::function<void(uid_t)> offer;  // its next step to that user's threads too; empty between steps
    LoadProgress progress;
    LoadPlan plan;
    Phase phase = Phase::kLooking;
    Budget::Reservation reservation;
    std::uint64_t generation = 0;
    TimePoint began;                   // its reading
    std::set<std::string> compared;    // blocks with other bytes than this file
    std::set<const Flight*> unwaited;  // stood still: it is not waited for any more
  };

  // block_loads.cc
  void add_part(const BatchPtr& batch, Want want);
  void look_on(const BatchPtr& batch);
  void admit(const BatchPtr& batch);
  void refused(const BatchPtr& batch, const Error& error);
  [[nodiscard]] std::vector<FlightPtr> led_and_lacking(const BatchPtr& batch) const;
  [[nodiscard]] FlightPtr flight_of(const FileIdentity& source) const;
  [[nodiscard]] static std::uint64_t room_for(const std::vector<FlightPtr>& flights);
  [[nodiscard]] std::vector<BatchPtr> sharers(const std::vector<FlightPtr>& flights) const;
  void got(const BatchPtr& batch, const FlightPtr& flight, RamBlock& block, Outcome how);
  void complete(const BatchPtr& batch);
  void fail(const BatchPtr& batch, const Error& error);
  void leave(const BatchPtr& batch, const std::string& reason);
  void let_go(const std::string& block);
  void tell(std::string_view type, const Batch& batch, const std::string& reason = "");
  void watch_progress();
  [[nodiscard]] std::pair<std::uint64_t, std::uint64_t> progress_of(const Batch& batch) const;

  // flights.cc. A step: `work` of the flight on a job thread, then our method `then` of flight and outcome.
  template <class Work, class Then>
  void run(const FlightPtr& flight, Work work, Then then);
  void take_off(const FlightPtr& flight);
  void header_read(const FlightPtr& flight, Result<LoadPlan> plan);
  void read(const FlightPtr& flight, Budget::Reservation reservation);
  void landed(const FlightPtr& flight, Result<LoadedBlock> loaded);
  void land(const FlightPtr& flight, RamBlock& block, Outcome how);
  void crash(const FlightPtr& flight, const Error& error);
  void abandon(const FlightPtr& flight);
  void ended(const FlightPtr& flight);

  // comparing.cc
  [[nodiscard]] std::vector<std::shared_ptr<Block>> to_compare(const Flight& flight);
  [[nodiscard]] bool may_share(const Flight& flight, const RamBlock& block) const;
  [[nodiscard]] FlightPtr ahead_of(const Flight& flight) const;
  void park(const FlightPtr& flight, const FlightPtr& ahead);
  void find_same(const FlightPtr& flight);
  struct Compared {
    std::vector<std::string> blocks;  // in their order; all but the last differ
    bool is_same = false;             // as the last
  };
  void compared(const FlightPtr& flight, Result<Compared> outcome);
  void unpark();

  Environment& env_;
  RamStore& ram_;
  const Rights& rights_;
  Loop& loop_;
  Reaper& reaper_;
  Admission& admission_;
  Scrubber& scrubber_;
  EventSink& events_;
  LoadNotes& notes_;
  std::vector<BatchPtr> batches_;
  std::vector<FlightPtr> flights_;
  Id next_id_ = 1;
  bool watching_progress_ = false;
  std::map<uid_t, std::unique_ptr<Jobs>> jobs_;  // last: ends before what its threads use
};

}  // namespace modelbroker
