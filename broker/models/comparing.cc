// Whether a flight's file is one that is resident, or being loaded, in the guise of another inode, device or ctime.
#include <algorithm>
#include <chrono>
#include <map>
#include <utility>

#include "broker/base/log.h"
#include "broker/models/flight_step.h"

namespace modelbroker {
namespace {

constexpr std::chrono::seconds kStandsStill{2};

bool same_header(const Directory& one, const Directory& other) {
  return one.payload.size == other.payload.size && one.tensors == other.tensors && one.metadata == other.metadata;
}

}  // namespace

// The same file always; another one where nobody could tell from the block that it is shared: with a group, whose the
// file is and who may read it decide who may have the block.
bool Loads::may_share(const Flight& flight, const RamBlock& block) const {
  if (block.source().same_but_ctime(flight.source) || !books_.rights.group()) return true;
  return block.is_private == flight.is_private && block.source_uid == flight.source_uid &&
         std::ranges::all_of(flight.waiters,
                             [&](const Waiter& waiter) { return books_.may_attach(waiter.peer.uid, block); });
}

std::vector<std::shared_ptr<Block>> Loads::to_compare(const Flight& flight) {
  std::vector<std::shared_ptr<Block>> blocks;
  for (const RamBlock* const block : books_.blocks.alike(flight.source)) {
    const bool is_known = flight.compared.contains(block->id());
    if (!is_known && may_share(flight, *block)) blocks.push_back(block->block);
  }
  return blocks;
}

// An earlier flight of the same user whose file may be this one. Not another user's: its file may hang.
Loads::FlightPtr Loads::ahead_of(const Flight& flight) const {
  if (!flight.unwaited.empty()) return nullptr;  // once is enough: many may stand still
  for (const FlightPtr& other : flights_) {
    if (other.get() == &flight) break;
    if (other->uid != flight.uid || other->progress.cancelled || !other->source.alike(flight.source)) continue;
    const bool has_plan = !other->plan.label.empty();
    if (!has_plan || same_header(other->plan.directory, flight.plan.directory)) return other;
  }
  return nullptr;
}

// Until that one has ended, or stands still: its read may hang, or it waits for room.
void Loads::park(const FlightPtr& flight, const FlightPtr& ahead) {
  flight->is_parked = true;
  loop_.after(kStandsStill, [this, weak = std::weak_ptr(flight), other = std::weak_ptr(ahead),
                             read = ahead->progress.read_bytes.load()] {
    const FlightPtr parked = weak.lock();
    const FlightPtr waited = other.lock();
    if (!parked || !waited || !parked->is_parked) return;
    if (waited->progress.read_bytes > read) return park(parked, waited);
    parked->unwaited.insert(waited.get());
    parked->is_parked = false;
    find_same(parked);
  });
}

// Compares the file with what is alike and was not compared yet; loads it when nothing is left that it could be.
void Loads::find_same(const FlightPtr& flight) {
  if (flight->waiters.empty()) return fail_all(flight, {ErrorCode::kCancelled, "nobody waits for the load"});
  std::vector<std::shared_ptr<Block>> blocks = to_compare(*flight);
  if (blocks.empty()) {
    if (const FlightPtr ahead = ahead_of(*flight)) return park(flight, ahead);
    refuse_taken_names(flight);
    if (!flight->waiters.empty()) admit(flight);
    return;
  }
  const auto compare = [os = &books_.os, notes = &notes_, blocks = std::move(blocks)](Flight& of) -> Result<Compared> {
    LoadNotes::Note note = notes->write(of.noted);
    Compared outcome;
    for (const std::shared_ptr<Block>& block : blocks) {
      outcome.blocks.push_back(block->id());
      MODELBROKER_ASSIGN(outcome.is_same, same_bytes(*os, of.file.get(), of.plan.directory, *block, of.progress));
      if (outcome.is_same) return outcome;
    }
    std::move(note).pause();  // it will be loaded
    return outcome;
  };
  run(flight, compare, &Loads::compared);
}

void Loads::compared(const FlightPtr& flight, Result<Compared> outcome) {
  if (!outcome) return fail_all(flight, outcome.error());
  flight->compared.insert(outcome->blocks.begin(), outcome->blocks.end());
  RamBlock* const block = outcome->is_same ? books_.blocks.find(outcome->blocks.back()) : nullptr;
  if (block == nullptr || block->removing || flight->waiters.empty()) return find_same(flight);
  for (const Waiter& waiter : flight->waiters) books_.blocks.confirm(*block, waiter.path, flight->source);
  std::string how;
  RamBlock* const found = usable(flight->source, how);
  if (found == nullptr) return find_same(flight);
  land(flight, *found, how);
}

// What is alike turned out to be another file, and may have taken, or be about to take, a name that is wanted here.
void Loads::refuse_taken_names(const FlightPtr& flight) {
  std::map<AskId, Error> refusals;
  const std::vector<const Claim*> before = coming_before(*flight);
  for (const Waiter& waiter : flight->waiters) {
    if (auto free = naming_.check(waiter, flight->source, before, true); !free) {
      refusals.emplace(waiter.id, std::move(free).error());
    }
  }
  if (refusals.empty()) return;
  const std::vector<Waiter> refused =
      take_out(*flight, [&](const Waiter& waiter) { return refusals.contains(waiter.id); });
  if (flight->waiters.empty()) ended(flight);
  for (const Waiter& waiter : refused) waiter.done(tl::unexpected(refusals.at(waiter.id)));
}

// Looks again, in the loop's next turn, at those behind a flight that has ended.
void Loads::unpark() {
  if (std::ranges::none_of(flights_, [](const FlightPtr& flight) { return flight->is_parked; })) return;
  loop_.post([this] {
    const std::vector<FlightPtr> flights = flights_;
    for (const FlightPtr& flight : flights) {
      if (std::exchange(flight->is_parked, false)) find_same(flight);
    }
  });
}

}  // namespace modelbroker
