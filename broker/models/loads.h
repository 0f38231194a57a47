// Loads: from "I want this file" to a resident block with a name.
//
//   identify (job) -> resident? revive? join a running load? -> header and plan (job) -> alike: compare (job) ->
//   admission -> load_block (job) -> books -> names -> state database -> everybody who waits
//
// A file of which size and mtime are those of a resident model's source, and the rest is not, is hashed and compared
// before it is loaded: some file systems number inodes at each look. Behind a running load of such a file a flight
// parks until that one has ended.
//
// Loads of one file coalesce: one flight, many waiters, each with its own name and deadline. A flight that nobody
// waits for any more is cancelled. Each uid has job threads of its own: a read that hangs is its asker's trouble. A
// flight runs on the threads of any who waits for it. (loads.cc: the waiters; flights.cc: the flights; comparing.cc:
// whether a flight's file is one that is resident.) Threads: the loop's; jobs do the reading.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "broker/base/event_sink.h"
#include "broker/base/jobs.h"
#include "broker/models/books.h"
#include "broker/models/load_notes.h"
#include "broker/models/naming.h"
#include "broker/models/reaper.h"
#include "broker/models/scrubber.h"
#include "broker/models/source_look.h"
#include "broker/ram/loader.h"
#include "broker/tier/admission.h"
#include "broker/tier/expiry.h"

namespace modelbroker {

class Loads {
 public:
  struct Ask {
    SessionId session = 0;
    std::uint64_t lease = 0;  // an attach's number, if the client chose it
    Peer peer;                // the session's
    Fd file;                  // open for reading; empty: the broker opens `path` itself
    std::string path;         // absolute; with `file` only a label
    std::string name;         // empty: the name it has, else default_name()
    std::string type;
    bool pin = false;
    bool retry = false;      // also if brokers died of it
    bool any_name = false;   // a free one, if default_name() is taken
    bool look_only = false;  // not_found at once where it is not resident: no load begins, and none is waited for
    std::optional<Duration> keep_alive;
    std::optional<TimePoint> until;    // how long it may wait for room
    std::optional<uid_t> name_loader;  // who gave the name, if not the peer
  };
  struct Outcome {
    std::string id;       // the model's
    std::string model;    // the name that was asked for, or the first
    std::string outcome;  // loaded, resident, revived, alias
  };
  // Why an attach is not granted whose lease was detached before.
  [[nodiscard]] static Error lease_detached(std::uint64_t lease);
  using Done = std::function<void(Result<Outcome>)>;
  using AskId = std::uint64_t;

  Loads(Books& books, Loop& loop, Reaper& reaper, Admission& admission, Expiry& expiry, Scrubber& scrubber,
        EventSink& events, LoadNotes& notes)
      : books_(books),
        loop_(loop),
        reaper_(reaper),
        admission_(admission),
        expiry_(expiry),
        scrubber_(scrubber),
        events_(events),
        notes_(notes),
        naming_(books) {}

  // `done` is called once, on the loop's thread, unless the session ends or it is given up before.
  AskId start(Ask ask, Done done);
  // Whoever asked so waits no longer.
  void give_up(AskId id);
  // Cancels an attach whose lease was ended before it was granted.
  void detached(SessionId session, std::uint64_t lease);
  // Cancels what an ended session asked for.
  void session_ended(SessionId session);
  // Cancels what is loaded again by a name that was unloaded meanwhile.
  void unloaded(const std::string& name);
  [[nodiscard]] bool waits(SessionId session) const;
  // Tells everybody who waits for this load (a name that was asked for, or a path) that it is cancelled; how many they
  // were. `uid`: only that user's; nothing: everybody's.
  std::size_t cancel(const std::string& model, std::optional<uid_t> uid);
  // Cancels everything and waits so long for the jobs; false if one hangs.
  [[nodiscard]] bool stop(std::chrono::milliseconds patience);

  struct Running {
    std::string name, path, type;
    uid_t uid = 0;
    bool is_private = false;
    const LoadProgress* progress = nullptr;
  };
  [[nodiscard]] std::vector<Running> running() const;

 private:
  struct Waiter : Claim {
    AskId id = 0;
    SessionId session = 0;
    std::uint64_t lease = 0;
    bool retry = false, look_only = false;
    std::optional<TimePoint> until;
    Done done;
  };
  using WaiterPtr = std::shared_ptr<Waiter>;
  struct Flight {
    FileIdentity source;
    LoadNotes::Source noted;
    Fd file;
    uid_t uid = 0, loader = 0;  // who asked first, and whom the block will count as loaded by
    bool is_private = false;    // as the first who asked for it found
    uid_t source_uid = 0;
    std::vector<Waiter> waiters;
    std::function<void(uid_t)> offer;   // its next step to that user's threads too; empty between steps
    std::string told_model, told_path;  // by which events tell of it
    LoadProgress progress;
    LoadPlan plan;
    std::optional<Admission::Id> asked;  // while it waits for its admission
    std::optional<Admission::Id> place;  // the same, and afterwards
    std::optional<TimePoint> until;      // when one of them must hear that there is no room; nothing: at once
    Budget::Reservation reservation;
    std::uint64_t generation = 0;
    TimePoint began;                   // its reading
    std::set<std::string> compared;    // blocks with other bytes than this file
    bool is_parked = false;            // behind a flight whose file may be the same
    std::set<const Flight*> unwaited;  // stood still: it is not waited for any more
  };
  using FlightPtr = std::shared_ptr<Flight>;

  [[nodiscard]] Jobs& jobs_of(uid_t uid);
  void identified(const WaiterPtr& waiter, Fd file, const Result<Look>& look);
  // What those want to be called who wait for other files than this.
  [[nodiscard]] std::vector<const Claim*> coming_beside(const FileIdentity& source) const;
  // The same of those flights alone that came before this one.
  [[nodiscard]] std::vector<const Claim*> coming_before(const Flight& flight) const;
  // A step: `work` of the flight on a job thread, then our method `then` of flight and outcome.
  template <class Work, class Then>
  void run(const FlightPtr& flight, Work work, Then then);
  void take_off(Waiter waiter, Fd file, const FileIdentity& source);
  void join(const FlightPtr& flight, Waiter waiter);
  void header_read(const FlightPtr& flight, Result<LoadPlan> plan);
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
  void refuse_taken_names(const FlightPtr& flight);
  void unpark();
  void admit(const FlightPtr& flight);
  void refused(const FlightPtr& flight, const Error& error);
  void read(const FlightPtr& flight);
  static void name_first(Flight& flight);
  void hand_on(Flight& flight);
  void tell(std::string_view type, const Flight& flight, const std::string& reason = "");
  void watch_progress();
  void landed(const FlightPtr& flight, Result<LoadedBlock> loaded);
  void ended(const FlightPtr& flight);
  void land(const FlightPtr& flight, RamBlock& block, const std::string& outcome);
  void drain_if_unwanted(RamBlock& block);
  // Takes those out for whom `whose` holds.
  template <class Predicate>
  std::vector<Waiter> take_out(Flight& flight, Predicate whose) {
    const AskId first = flight.waiters.empty() ? 0 : flight.waiters.front().id;
    std::vector<Waiter> taken, left;
    for (Waiter& waiter : flight.waiters) (whose(waiter) ? taken : left).push_back(std::move(waiter));
    flight.waiters = std::move(left);
    if (!flight.waiters.empty() && flight.waiters.front().id != first) hand_on(flight);
    return taken;
  }
  template <class Predicate>
  std::size_t withdraw(Predicate whose, const std::optional<Error>& error);
  void give_up_if_unwanted(const FlightPtr& flight);
  void fail_all(const FlightPtr& flight, const Error& error);
  // The name that it got.
  std::optional<std::string> finish(Waiter& waiter, RamBlock& block, const std::string& outcome);
  void keep_promise(const std::string& block);
  [[nodiscard]] RamBlock* usable(const FileIdentity& source, std::string& outcome);

  Books& books_;
  Loop& loop_;
  Reaper& reaper_;
  Admission& admission_;
  Expiry& expiry_;
  Scrubber& scrubber_;
  EventSink& events_;
  LoadNotes& notes_;
  Naming naming_;
  std::vector<WaiterPtr> asking_;  // whose file is being looked at
  std::vector<FlightPtr> flights_;
  AskId next_id_ = 1;
  std::uint64_t looks_ = 0;  // at files, so far
  bool watching_progress_ = false;
  std::map<uid_t, std::unique_ptr<Jobs>> jobs_;  // last: ends before what its threads use
};

}  // namespace modelbroker
