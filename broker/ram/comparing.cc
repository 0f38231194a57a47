// Whether a flight's file is one that is resident, or being loaded, in the guise of another inode, device or ctime.
#include <algorithm>
#include <chrono>
#include <map>
#include <utility>

#include "broker/base/log.h"
#include "broker/ram/flight_step.h"

namespace modelbroker {
namespace {

constexpr std::chrono::seconds kStandsStill{2};

bool same_header(const Directory& one, const Directory& other) {
  return one.payload.size == other.payload.size && one.tensors == other.tensors && one.metadata == other.metadata;
}

}  // namespace

// The same file always; another one where nobody could tell from the block that it is shared: with a group, whose the
// file is and who may read it decide who may have the block.
bool BlockLoads::may_share(const Flight& flight, const RamBlock& block) const {
  const Look& look = flight.want.look;
  if (block.source().same_but_ctime(look.source) || !rights_.group()) return true;
  return block.is_private == look.is_private && block.source_uid == look.uid &&
         std::ranges::all_of(flight.batches, [&](const BatchPtr& batch) { return batch->ask.may_have(block); });
}

std::vector<std::shared_ptr<Block>> BlockLoads::to_compare(const Flight& flight) {
  std::vector<std::shared_ptr<Block>> blocks;
  for (const RamBlock* const block : ram_.blocks.alike(flight.want.look.source)) {
    const bool is_known = flight.compared.contains(block->id());
    if (!is_known && may_share(flight, *block)) blocks.push_back(block->block);
  }
  return blocks;
}

// An earlier flight of the same user whose file may be this one. Not another user's: its file may hang.
BlockLoads::FlightPtr BlockLoads::ahead_of(const Flight& flight) const {
  if (!flight.unwaited.empty()) return nullptr;  // once is enough: many may stand still
  for (const FlightPtr& other : flights_) {
    if (other.get() == &flight) break;
    if (other->batches.empty() || other->progress.cancelled) continue;
    const Batch& leader = *other->batches.front();
    // Two files of one model are two files, and are admitted together.
    if (&leader == flight.batches.front().get() || leader.ask.uid != flight.batches.front()->ask.uid) continue;
    if (!other->want.look.source.alike(flight.want.look.source)) continue;
    const bool has_plan = !other->plan.label.empty();
    if (!has_plan || same_header(other->plan.directory, flight.plan.directory)) return other;
  }
  return nullptr;
}

// Until that one has ended, or stands still: its read may hang, or it waits for room.
void BlockLoads::park(const FlightPtr& flight, const FlightPtr& ahead) {
  flight->phase = Phase::kParked;
  loop_.after(kStandsStill, [this, weak = std::weak_ptr(flight), other = std::weak_ptr(ahead),
                             read = ahead->progress.read_bytes.load()] {
    const FlightPtr parked = weak.lock();
    const FlightPtr waited = other.lock();
    if (!parked || !waited || parked->phase != Phase::kParked) return;
    if (waited->progress.read_bytes > read) return park(parked, waited);
    parked->unwaited.insert(waited.get());
    parked->phase = Phase::kLooking;
    find_same(parked);
  });
}

// Compares the file with what is alike and was not compared yet; loads it when nothing is left that it could be.
void BlockLoads::find_same(const FlightPtr& flight) {
  if (flight->batches.empty()) return crash(flight, {ErrorCode::kCancelled, "nobody waits for the load"});
  std::vector<std::shared_ptr<Block>> blocks = to_compare(*flight);
  if (blocks.empty()) {
    if (const FlightPtr ahead = ahead_of(*flight)) return park(flight, ahead);
    flight->phase = Phase::kPlanned;
    for (const BatchPtr& batch : std::vector<BatchPtr>(flight->batches)) look_on(batch);
    return;
  }
  const auto compare = [os = &env_.os, notes = &notes_, blocks = std::move(blocks)](Flight& of) -> Result<Compared> {
    LoadNotes::Note note = notes->write(of.noted);
    Compared outcome;
    for (const std::shared_ptr<Block>& block : blocks) {
      outcome.blocks.push_back(block->id());
      MODELBROKER_ASSIGN(outcome.is_same, same_bytes(*os, of.want.file.get(), of.plan.directory, *block, of.progress));
      if (outcome.is_same) return outcome;
    }
    std::move(note).pause();  // it will be loaded
    return outcome;
  };
  run(flight, compare, &BlockLoads::compared);
}

void BlockLoads::compared(const FlightPtr& flight, Result<Compared> outcome) {
  if (!outcome) return crash(flight, outcome.error());
  flight->compared.insert(outcome->blocks.begin(), outcome->blocks.end());
  RamBlock* const block = outcome->is_same ? ram_.blocks.find(outcome->blocks.back()) : nullptr;
  if (block == nullptr || block->removing || flight->batches.empty()) return find_same(flight);
  const FileIdentity& source = flight->want.look.source;
  for (const BatchPtr& batch : flight->batches) {
    for (const Part& part : batch->parts) {
      if (part.flight == flight) ram_.blocks.confirm(*block, part.path, source);
    }
  }
  const Got found = usable(source);
  if (found.block == nullptr) return find_same(flight);
  land(flight, *found.block, found.how);
}

// Looks again, in the loop's next turn, at those behind a flight that has ended.
void BlockLoads::unpark() {
  if (std::ranges::none_of(flights_, [](const FlightPtr& flight) { return flight->phase == Phase::kParked; })) return;
  loop_.post([this] {
    const std::vector<FlightPtr> flights = flights_;
    for (const FlightPtr& flight : flights) {
      if (flight->phase != Phase::kParked) continue;
      flight->phase = Phase::kLooking;
      find_same(flight);
    }
  });
}

}  // namespace modelbroker
