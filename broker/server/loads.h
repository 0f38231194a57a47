// Loads: from "I want this file" to a resident block with a name.
//
//   identify (job) -> resident? revive? join a running load? -> directory (job) -> admission ->
//   load_block (job) -> books -> names -> state database -> everybody who waits
//
// Loads of one file coalesce: one flight, many waiters, each with its own name. A flight that nobody
// waits for any more is cancelled. Threads: the loop's; jobs do the reading.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "broker/ram/loader.h"
#include "broker/server/books.h"
#include "broker/server/jobs.h"
#include "broker/server/reaper.h"
#include "broker/server/state_keeper.h"

namespace modelbroker {

class Loads {
 public:
  struct Ask {
    SessionId session = 0;
    Fd file;           // open for reading; empty: the broker opens `path` itself
    std::string path;  // absolute; with `file` only a label
    std::string name;  // empty: the name it has, else the file's stem
    std::string type;
    bool pin = false;
    bool any_name = false;  // a free one, if the file's stem is taken
  };
  struct Outcome {
    std::string block;
    std::string model;    // the name that was asked for, or the first
    std::string outcome;  // loaded, resident, revived, alias
  };
  using Done = std::function<void(Result<Outcome>)>;

  Loads(Books& books, Jobs& jobs, Reaper& reaper, StateKeeper& keeper)
      : books_(books), jobs_(jobs), reaper_(reaper), keeper_(keeper) {}

  // `done` is called once, on the loop's thread, unless the session ends before.
  void start(Ask ask, Done done);
  // Withdraws what an ended session asked for.
  void session_ended(SessionId session);
  void cancel_all();

  struct Running {
    std::string name, path, type;
    const LoadProgress* progress = nullptr;
  };
  [[nodiscard]] std::vector<Running> running() const;

 private:
  struct Waiter {
    SessionId session = 0;
    std::string path, name, type;
    bool pin = false;
    bool any_name = false;
    Done done;
    // The name that it asks for: by default the file's stem.
    [[nodiscard]] std::string wanted_name() const;
  };
  struct Flight {
    FileIdentity source;
    Fd file;
    std::vector<Waiter> waiters;
    LoadProgress progress;
    Directory directory;
    std::uint64_t reserved = 0;
    std::string block_to_compare;  // resident, alike but for ctime
  };
  using FlightPtr = std::shared_ptr<Flight>;

  void identified(Waiter waiter, Fd file, const Result<FileIdentity>& source);
  [[nodiscard]] Result<void> check_name(const Waiter& waiter, const FileIdentity& source);
  void take_off(Waiter waiter, Fd file, const FileIdentity& source);
  struct Header {
    Directory directory;
    bool same_bytes = false;  // as the block that was to be compared
  };
  void header_read(const FlightPtr& flight, Result<Header> header);
  void admit(const FlightPtr& flight);
  void landed(const FlightPtr& flight, Result<Block> block);
  void ended(const FlightPtr& flight);
  void land(const FlightPtr& flight, Resident& resident, const std::string& outcome);
  void drain_if_nameless(Resident& resident);
  void fail_all(const FlightPtr& flight, const Error& error);
  void finish(Waiter& waiter, Resident& resident, std::string outcome);
  [[nodiscard]] Result<std::string> settle_name(const Waiter& waiter, Resident& resident, std::string& outcome);
  [[nodiscard]] Resident* usable(const FileIdentity& source, std::string& outcome);

  Books& books_;
  Jobs& jobs_;
  Reaper& reaper_;
  StateKeeper& keeper_;
  std::vector<FlightPtr> flights_;
  std::vector<FlightPtr> waiting_;  // for the room that cancelled flights still hold
};

// The file's name without folder and suffix: a model's default name.
[[nodiscard]] std::string stem_of(const std::string& path);

}  // namespace modelbroker
