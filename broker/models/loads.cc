#include "broker/models/loads.h"

#include <algorithm>
#include <chrono>
#include <iterator>
#include <set>

#include "broker/base/log.h"
#include "broker/models/ram_tier.h"
#include "shm/instruments.h"
#include "shm/text.h"
#include "shm/threads.h"
#include "wire/frame.h"

namespace modelbroker {
namespace {

constexpr std::size_t kJobsOfOneUser = 16;

}  // namespace

Loads::AskId Loads::start(Ask ask, Done done) {
  const auto waiter = std::make_shared<Waiter>();
  waiter->id = next_id_++;
  waiter->session = ask.session;
  waiter->lease = ask.lease;
  waiter->peer = std::move(ask.peer);
  waiter->path = std::move(ask.path);
  waiter->name = std::move(ask.name);
  waiter->type = std::move(ask.type);
  waiter->pin = ask.pin;
  waiter->retry = ask.retry;
  waiter->any_name = ask.any_name;
  waiter->look_only = ask.look_only;
  waiter->keep_alive = ask.keep_alive;
  waiter->until = ask.until;
  waiter->name_loader = ask.name_loader;
  waiter->done = std::move(done);
  asking_.push_back(waiter);
  LookOrder order{waiter->peer, waiter->path, books_.rights.everything(waiter->peer.uid), books_.rights.group(),
                  books_.config.model_folders};
  auto file = std::make_shared<Fd>(std::move(ask.file));
  Jobs& jobs = jobs_of(waiter->peer.uid);
  const auto looked = [this, file, waiter](const Result<Look>& look) { identified(waiter, std::move(*file), look); };
  if (jobs.has_thread()) {
    jobs.run([os = &books_.os, order = std::move(order), file] { return look_at_source(*os, order, *file); }, looked);
  } else {  // the loop must read no file itself
    loop_.post([looked] { looked(tl::unexpected(no_thread_left("the broker cannot read the file"))); });
  }
  return waiter->id;
}

Jobs& Loads::jobs_of(uid_t uid) {
  std::unique_ptr<Jobs>& jobs = jobs_[uid];
  if (!jobs) jobs = std::make_unique<Jobs>(loop_, kJobsOfOneUser);
  return *jobs;
}

RamBlock* Loads::usable(const FileIdentity& source, std::string& outcome) {
  RamBlock* const block = books_.blocks.by_source(source);
  if (block == nullptr) return nullptr;
  outcome = "resident";
  if (!block->draining()) return scrubber_.withdraw_missing(*block) ? nullptr : block;
  if (auto revived = books_.blocks.revive(*block); !revived) {
    log_warning("block " + block->id() + " cannot be revived: " + revived.error().message);
    return nullptr;
  }
  reaper_.revived(block->id());
  outcome = "revived";
  return block;
}

void Loads::identified(const WaiterPtr& asking, Fd file, const Result<Look>& look) {
  if (std::erase(asking_, asking) == 0) return;  // withdrawn meanwhile
  Waiter waiter = std::move(*asking);
  if (!look) return waiter.done(tl::unexpected(look.error()));
  waiter.asked = ++looks_;
  waiter.is_label = look->is_label;
  waiter.source_uid = look->uid;
  waiter.is_private = look->is_private;
  const FileIdentity* const source = &look->source;
  if (auto free = naming_.check(waiter, *source, coming_beside(*source)); !free)
    return waiter.done(tl::unexpected(free.error()));
  std::string outcome;
  if (RamBlock* const block = usable(*source, outcome)) {
    ++books_.hits;
    finish(waiter, *block, outcome);
    return drain_if_unwanted(*block);
  }
  if (waiter.look_only) {
    return waiter.done(
        fail(ErrorCode::kNotFound, "'" + printable(waiter.path) +
                                       "' is not resident, and an attach with 'load: false' loads nothing: load it "
                                       "with 'modelbroker load FILE', or attach without 'load: false'"));
  }
  ++books_.misses;
  const auto running = std::ranges::find_if(
      flights_, [&](const FlightPtr& flight) { return flight->source == *source && !flight->progress.cancelled; });
  if (running != flights_.end()) return join(*running, std::move(waiter));
  if (auto harmless = notes_.check({*source, waiter.path, waiter.is_label}); !harmless && !waiter.retry) {
    return waiter.done(tl::unexpected(harmless.error()));
  }
  take_off(std::move(waiter), std::move(file), *source);
}

std::vector<const Claim*> Loads::coming_beside(const FileIdentity& source) const {
  std::vector<const Claim*> claims;
  for (const FlightPtr& flight : flights_) {
    if (flight->source.alike(source)) continue;  // it may be the same file: find_same() looks again
    for (const Waiter& waiter : flight->waiters) claims.push_back(&waiter);
  }
  return claims;
}

std::vector<const Claim*> Loads::coming_before(const Flight& flight) const {
  std::vector<const Claim*> claims;
  for (const FlightPtr& other : flights_) {
    if (other.get() == &flight) break;
    for (const Waiter& waiter : other->waiters) claims.push_back(&waiter);
  }
  return claims;
}

// Answered when it is written: what was acknowledged survives a crash. A block that has lost its names drains then, and
// not before: a death in between would lose them.
std::optional<std::string> Loads::finish(Waiter& waiter, RamBlock& block, const std::string& outcome) {
  const auto refuse = [&waiter](Error error) {
    waiter.done(tl::unexpected(std::move(error)));
    return std::nullopt;
  };
  if (auto allowed = naming_.allow(waiter, block); !allowed) return refuse(allowed.error());
  const auto settled = naming_.settle(waiter, block, outcome);
  if (!settled) return refuse(settled.error());
  std::vector<std::string> promised{settled->superseded};
  promised.push_back(block.id());
  for (const std::string& id : promised) ++books_.blocks.find(id)->promised;
  Result<Outcome> answer = Outcome{block.id(), settled->name, settled->outcome};
  if (settled->refused) answer = tl::unexpected(*settled->refused);
  books_.models.apply(settled->change, [this, done = waiter.done, answer = std::move(answer), promised] {
    crash_point("load.written");
    for (auto id = promised.begin(); id + 1 != promised.end(); ++id) keep_promise(*id);
    done(answer);
    keep_promise(promised.back());
    admission_.look_again();
  });
  books_.used(*books_.models.of_block(block));
  return settled->name;
}

void Loads::keep_promise(const std::string& id) {
  RamBlock* const block = books_.blocks.find(id);
  if (block == nullptr || --block->promised > 0) return;
  if (block->unwanted() && !block->draining()) reaper_.drain(*block);
  for (const ModelEntry* const model : books_.models.with_block(*block)) expiry_.changed(expires_at(books_, *model));
}

// Takes waiters out of all loads, and tells them why.
template <class Predicate>
std::size_t Loads::withdraw(Predicate whose, const std::optional<Error>& error) {
  std::vector<Waiter> out;
  std::erase_if(asking_, [&](const WaiterPtr& waiter) {
    if (!whose(*waiter)) return false;
    out.push_back(std::move(*waiter));
    return true;
  });
  const std::vector<FlightPtr> flights = flights_;
  for (const FlightPtr& flight : flights) {
    if (flight->waiters.empty()) continue;
    std::ranges::move(take_out(*flight, whose), std::back_inserter(out));
    give_up_if_unwanted(flight);
  }
  if (error) {
    for (const Waiter& waiter : out) waiter.done(tl::unexpected(*error));
  }
  return out.size();
}

void Loads::give_up_if_unwanted(const FlightPtr& flight) {
  if (!flight->waiters.empty()) return;
  flight->progress.cancelled = true;
  flight->reservation.give_up(books_.clock.now());
  if (flight->asked || flight->is_parked) {
    fail_all(flight, {ErrorCode::kCancelled, "nobody waits for the load"});
  } else {
    unpark();
    admission_.look_again();
  }
}

Error Loads::lease_detached(std::uint64_t lease) {
  return {ErrorCode::kCancelled, "the lease " + std::to_string(lease) + " was detached before it was granted"};
}

void Loads::give_up(AskId id) {
  withdraw([&](const Waiter& waiter) { return waiter.id == id; }, std::nullopt);
}

void Loads::detached(SessionId session, std::uint64_t lease) {
  withdraw([&](const Waiter& waiter) { return waiter.session == session && waiter.lease == lease; },
           lease_detached(lease));
}

void Loads::session_ended(SessionId session) {
  withdraw([&](const Waiter& waiter) { return waiter.session == session; },
           Error{ErrorCode::kCancelled, "the session that asked for the load has ended"});
}

void Loads::unloaded(const std::string& name) {
  withdraw([&](const Waiter& waiter) { return waiter.name_loader && waiter.name == name; },
           Error{ErrorCode::kCancelled, "'" + printable(name) + "' was unloaded meanwhile"});
}

bool Loads::waits(SessionId session) const {
  const auto is_its = [&](const Waiter& waiter) { return waiter.session == session; };
  return std::ranges::any_of(asking_, [&](const WaiterPtr& waiter) { return is_its(*waiter); }) ||
         std::ranges::any_of(flights_,
                             [&](const FlightPtr& flight) { return std::ranges::any_of(flight->waiters, is_its); });
}

std::size_t Loads::cancel(const std::string& model, std::optional<uid_t> uid) {
  const auto names = [&](const Waiter& waiter) { return waiter.wanted_name() == model || waiter.path == model; };
  const auto may = [&](const Waiter& waiter) { return !uid || waiter.peer.uid == *uid; };
  // Whoever waits for the same file under another name waits for the same load.
  std::set<const Waiter*> all;
  for (const WaiterPtr& waiter : asking_) {
    if (names(*waiter) && may(*waiter)) all.insert(waiter.get());
  }
  for (const FlightPtr& flight : flights_) {
    if (std::ranges::none_of(flight->waiters, names)) continue;
    for (const Waiter& waiter : flight->waiters) {
      if (may(waiter)) all.insert(&waiter);
    }
  }
  return withdraw([&](const Waiter& waiter) { return all.contains(&waiter); },
                  Error{ErrorCode::kCancelled, "the load of '" + printable(model) + "' was cancelled"});
}

bool Loads::stop(std::chrono::milliseconds patience) {
  for (const FlightPtr& flight : flights_) flight->progress.cancelled = true;
  const auto end = books_.clock.now() + patience;
  bool ended = true;
  for (const auto& [uid, jobs] : jobs_) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - books_.clock.now());
    ended = jobs->stop(std::max(left, std::chrono::milliseconds(0))) && ended;
  }
  return ended;
}

std::vector<Loads::Running> Loads::running() const {
  std::vector<Running> list;
  for (const FlightPtr& flight : flights_) {
    if (flight->waiters.empty()) continue;
    const Waiter& first = flight->waiters.front();
    list.push_back(
        {first.wanted_name(), first.path, first.type, first.peer.uid, flight->is_private, &flight->progress});
  }
  return list;
}

}  // namespace modelbroker
