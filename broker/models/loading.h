// Loading: from "I want this model" to a resident model with a name.
//
//   look at its files (job) -> name free? -> resident? -> BlockLoads -> Naming -> Registry::apply -> who asked
//
// It knows names and no threads. Each asker waits with a name and a deadline of its own, also where their files are the
// same. Threads: the loop's.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "broker/models/model_sources.h"
#include "broker/models/naming.h"
#include "broker/models/ram_tier.h"
#include "broker/ram/block_loads.h"
#include "broker/tier/expiry.h"

namespace modelbroker {

class Loading {
 public:
  struct Ask {
    SessionId session = 0;
    std::uint64_t lease = 0;           // an attach's number, if the client chose it
    Peer peer;                         // the session's
    std::vector<OfferedSource> files;  // open for reading; what is not there the broker opens itself
    std::string path;                  // absolute; with a file only a label
    std::string name;                  // empty: the name it has, else default_name()
    std::string type;
    bool pin = false;
    bool retry = false;      // also if brokers died of it
    bool any_name = false;   // a free one, if default_name() is taken
    bool look_only = false;  // not_found at once where it is not resident: no load begins, and none is waited for
    std::optional<Duration> keep_alive;
    std::optional<TimePoint> until;    // how long it may wait for room
    std::optional<uid_t> name_loader;  // who gave the name, if not the peer
  };
  struct Answer {
    std::string id;     // the model's
    std::string model;  // the name that was asked for, or the first
    Outcome outcome = Outcome::kResident;
  };
  // Why an attach is not granted whose lease was detached before.
  [[nodiscard]] static Error lease_detached(std::uint64_t lease);
  using Done = std::function<void(Result<Answer>)>;
  using AskId = std::uint64_t;

  Loading(Environment& env, const Rights& rights, RamStore& ram, Registry& models, RamTier& tier, Loop& loop,
          BlockLoads& blocks, Reaper& reaper, Admission& admission, Expiry& expiry, EventSink& events, LoadNotes& notes)
      : env_(env),
        rights_(rights),
        ram_(ram),
        models_(models),
        tier_(tier),
        loop_(loop),
        blocks_(blocks),
        reaper_(reaper),
        admission_(admission),
        expiry_(expiry),
        events_(events),
        notes_(notes),
        naming_(env, rights, ram, models) {}

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
  [[nodiscard]] std::vector<BlockLoads::Running> running() const { return blocks_.running(); }

 private:
  struct Waiter : Claim {
    AskId id = 0;
    SessionId session = 0;
    std::uint64_t lease = 0;
    bool retry = false, look_only = false;
    std::optional<TimePoint> until;
    std::optional<BlockLoads::Id> loading;  // once its blocks are under way
    Done done;
  };
  using WaiterPtr = std::shared_ptr<Waiter>;

  using Gots = std::vector<BlockLoads::Got>;
  void identified(const WaiterPtr& waiter, Result<ModelSources> sources);
  // All its blocks, if they are resident.
  [[nodiscard]] std::optional<Gots> resident(const std::vector<SourcePart>& parts);
  void drain_unwanted(const Gots& gots);
  [[nodiscard]] Result<void> check_harmless(const Waiter& waiter, const std::vector<SourcePart>& parts);
  void load(const WaiterPtr& waiter, ModelSources sources);
  void loaded(const WaiterPtr& waiter, BlockLoads::Done outcome);
  // What those want to be called who wait for other files than this one.
  [[nodiscard]] std::vector<const Claim*> coming_beside(const Waiter& waiter) const;
  // The same of those that came before it.
  [[nodiscard]] std::vector<const Claim*> coming_before(const Waiter& waiter) const;
  [[nodiscard]] uid_t loader_of(const Waiter& waiter) const;
  // The name that it got.
  std::optional<std::string> finish(const Waiter& waiter, const Gots& gots);
  void keep_promise(const std::string& block);
  template <class Predicate>
  std::size_t withdraw(Predicate whose, const std::optional<Error>& error);

  Environment& env_;
  const Rights& rights_;
  RamStore& ram_;
  Registry& models_;
  RamTier& tier_;
  Loop& loop_;
  BlockLoads& blocks_;
  Reaper& reaper_;
  Admission& admission_;
  Expiry& expiry_;
  EventSink& events_;
  LoadNotes& notes_;
  Naming naming_;
  std::vector<WaiterPtr> waiters_;  // in the order of their asking
  AskId next_id_ = 1;
  std::uint64_t looks_ = 0;  // at files, so far
};

}  // namespace modelbroker
