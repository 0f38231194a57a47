#include "broker/ram/block_loads.h"

#include <algorithm>
#include <chrono>
#include <tuple>
#include <utility>

#include "broker/base/log.h"
#include "shm/text.h"
#include "wire/frame.h"

namespace modelbroker {
namespace {

constexpr std::size_t kJobsOfOneUser = 16;
constexpr std::chrono::milliseconds kProgressEvery{100};

}  // namespace

Jobs& BlockLoads::jobs_of(uid_t uid) {
  std::unique_ptr<Jobs>& jobs = jobs_[uid];
  if (!jobs) jobs = std::make_unique<Jobs>(loop_, kJobsOfOneUser);
  return *jobs;
}

BlockLoads::Got BlockLoads::usable(const FileIdentity& source) {
  RamBlock* const block = ram_.blocks.by_source(source);
  if (block == nullptr) return {};
  if (!block->draining()) return scrubber_.withdraw_missing(*block) ? Got() : Got{block, Outcome::kResident};
  if (auto revived = ram_.blocks.revive(*block); !revived) {
    log_warning("block " + block->id() + " cannot be revived: " + revived.error().message);
    return {};
  }
  reaper_.revived(block->id());
  return {block, Outcome::kRevived};
}

BlockLoads::FlightPtr BlockLoads::flight_of(const FileIdentity& source) const {
  const auto found = std::ranges::find_if(flights_, [&](const FlightPtr& flight) {
    return flight->want.look.source == source && !flight->progress.cancelled;
  });
  return found == flights_.end() ? nullptr : *found;
}

BlockLoads::Id BlockLoads::want(Ask ask) {
  const auto batch = std::make_shared<Batch>();
  batch->id = next_id_++;
  batch->ask = std::move(ask);
  batches_.push_back(batch);
  for (Want& want : std::exchange(batch->ask.wants, {})) add_part(batch, std::move(want));
  loop_.post([this, weak = std::weak_ptr(batch)] {  // not before we have returned the id
    if (const BatchPtr wanted = weak.lock()) look_on(wanted);
  });
  return batch->id;
}

// Resident, under way, or a flight of its own.
void BlockLoads::add_part(const BatchPtr& batch, Want want) {
  batch->is_private = batch->is_private || want.look.is_private;
  batch->parts.push_back({.flight = nullptr, .block = "", .path = want.identity.path});
  Part& part = batch->parts.back();
  if (const Got there = usable(want.look.source); there.block != nullptr) {
    ++there.block->promised;
    part.block = there.block->id();
    part.how = there.how;
    return;
  }
  part.flight = flight_of(want.look.source);
  if (part.flight) {
    part.flight->batches.push_back(batch);
    if (part.flight->offer) part.flight->offer(batch->ask.uid);
    const BatchPtr leader = part.flight->batches.front();
    const bool is_hastier = leader->asked && batch->ask.until < leader->until;
    if (is_hastier) {
      admission_.withdraw(*std::exchange(leader->asked, std::nullopt));
      admit(leader);
    }
    return;
  }
  part.flight = std::make_shared<Flight>();
  part.flight->want = std::move(want);
  part.flight->batches.push_back(batch);
  flights_.push_back(part.flight);
  take_off(part.flight);
}

// ---- room

std::vector<BlockLoads::FlightPtr> BlockLoads::led_and_lacking(const BatchPtr& batch) const {
  std::vector<FlightPtr> flights;
  for (const Part& part : batch->parts) {
    const bool lacks = part.flight && part.flight->phase != Phase::kReading;
    if (lacks && part.flight->batches.front() == batch) flights.push_back(part.flight);
  }
  return flights;
}

std::uint64_t BlockLoads::room_for(const std::vector<FlightPtr>& flights) {
  std::uint64_t bytes = 0;
  for (const FlightPtr& flight : flights) bytes += flight->plan.layout.block_size;
  return bytes;
}

std::vector<BlockLoads::BatchPtr> BlockLoads::sharers(const std::vector<FlightPtr>& flights) const {
  std::vector<BatchPtr> batches;
  for (const FlightPtr& flight : flights) {
    for (const BatchPtr& batch : flight->batches) {
      if (std::ranges::find(batches, batch) == batches.end()) batches.push_back(batch);
    }
  }
  return batches;
}

// Whatever has changed for it: its last block is there, or all that it leads is planned.
void BlockLoads::look_on(const BatchPtr& batch) {
  if (std::ranges::find(batches_, batch) == batches_.end()) return;
  if (std::ranges::none_of(batch->parts, [](const Part& part) { return part.flight != nullptr; })) {
    return complete(batch);
  }
  const bool all_planned = std::ranges::all_of(batch->parts, [](const Part& part) {
    return !part.flight || part.flight->phase == Phase::kPlanned || part.flight->phase == Phase::kReading;
  });
  if (!all_planned) return;
  if (!std::exchange(batch->may_load, true)) {
    if (const auto may = batch->ask.may_load(); !may) return fail(batch, may.error());
  }
  if (!batch->asked && !led_and_lacking(batch).empty()) admit(batch);
}

// REQUIRES: all that it leads and lacks is planned.
void BlockLoads::admit(const BatchPtr& batch) {
  const std::vector<FlightPtr> flights = led_and_lacking(batch);
  const auto then = [this, batch, flights](Result<Budget::Reservation> admitted) {
    batch->asked.reset();
    if (!admitted) return refused(batch, admitted.error());
    for (const FlightPtr& flight : flights) {
      const bool is_last = flight == flights.back();
      read(flight, is_last ? std::move(*admitted) : admitted->split(flight->plan.layout.block_size));
    }
  };
  const std::vector<BatchPtr> waiting = sharers(flights);
  batch->until =
      (*std::ranges::min_element(waiting, {}, [](const BatchPtr& each) { return each->ask.until; }))->ask.until;
  const bool is_one = batch->parts.size() == 1;
  const std::string what = is_one ? flights.front()->plan.label : printable(batch->ask.path);
  batch->asked = admission_.ask({room_for(flights), "'" + what + "'", batch->until}, then, batch->place);
  batch->place = batch->asked;
}

// Who gave no deadline, or none that is later than what was waited for, hears it now; the others wait for room.
void BlockLoads::refused(const BatchPtr& batch, const Error& error) {
  const std::vector<FlightPtr> flights = led_and_lacking(batch);
  const bool can_never_be = room_for(flights) > ram_.budget.limit();
  for (const BatchPtr& waiting : sharers(flights)) {
    if (waiting->ask.until <= batch->until || can_never_be) fail(waiting, error);
  }
  for (const BatchPtr& waiting : sharers(flights)) look_on(waiting);
}

// ---- the ends of a part, and of a batch

void BlockLoads::got(const BatchPtr& batch, const FlightPtr& flight, RamBlock& block, Outcome how) {
  for (Part& part : batch->parts) {
    if (part.flight != flight) continue;
    part.flight.reset();
    part.block = block.id();
    part.how = how;
    ++block.promised;
  }
  look_on(batch);
}

void BlockLoads::complete(const BatchPtr& batch) {
  Done done{.blocks = std::vector<Got>(), .is_told = batch->is_told};
  for (const Part& part : batch->parts) {
    RamBlock* const block = ram_.blocks.find(part.block);
    if (block == nullptr || block->removing || block->damaged || block->draining()) {
      return fail(batch, {ErrorCode::kUnavailable, "'" + printable(part.path) + "' was withdrawn meanwhile; retry"});
    }
    done.blocks->push_back({block, part.how});
  }
  std::erase(batches_, batch);
  batch->ask.done(std::move(done));
  for (const Part& part : batch->parts) let_go(part.block);
}

void BlockLoads::fail(const BatchPtr& batch, const Error& error) {
  if (std::ranges::find(batches_, batch) == batches_.end()) return;
  log_warning("load of '" + printable(batch->ask.path) + "' failed: " + error.message);
  // The message of a private file's error may say where that lies.
  const std::string code(to_string(error.code));
  leave(batch, batch->is_private ? code : code + ": " + error.message);
  batch->ask.done({tl::unexpected(error), false});
}

void BlockLoads::give_up(Id id) {
  const auto found = std::ranges::find(batches_, id, &Batch::id);
  if (found != batches_.end()) leave(BatchPtr(*found), "cancelled: nobody waits for the load");
}

// Its flights go on for others, by the name of the next who leads, or are given up. `reason`: why, if nobody is left.
void BlockLoads::leave(const BatchPtr& batch, const std::string& reason) {
  std::erase(batches_, batch);
  if (batch->asked) admission_.withdraw(*std::exchange(batch->asked, std::nullopt));
  const bool is_alone = std::ranges::any_of(
      batch->parts, [](const Part& part) { return part.flight && part.flight->batches.size() == 1; });
  if (batch->is_told || is_alone) {
    tell("model.load_failed", *batch, is_alone ? reason : "cancelled: it goes on for others");
  }
  std::vector<BatchPtr> leaders;
  for (Part& part : batch->parts) {
    if (!part.flight) {
      let_go(part.block);
      continue;
    }
    const FlightPtr flight = std::exchange(part.flight, nullptr);
    std::erase(flight->batches, batch);
    if (flight->batches.empty()) {
      abandon(flight);
      continue;
    }
    const BatchPtr leader = flight->batches.front();
    if (batch->place && !leader->place) leader->place = std::exchange(batch->place, std::nullopt);
    if (flight->phase == Phase::kReading && !std::exchange(leader->is_told, true)) tell("model.loading", *leader);
    leaders.push_back(leader);
  }
  for (const BatchPtr& leader : leaders) look_on(leader);
}

void BlockLoads::let_go(const std::string& id) {
  RamBlock* const block = ram_.blocks.find(id);
  if (block == nullptr) return;
  --block->promised;
  reaper_.drain_unwanted(*block);
}

bool BlockLoads::stop(std::chrono::milliseconds patience) {
  for (const FlightPtr& flight : flights_) flight->progress.cancelled = true;
  const auto end = env_.clock.now() + patience;
  bool ended = true;
  for (const auto& [uid, jobs] : jobs_) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - env_.clock.now());
    ended = jobs->stop(std::max(left, std::chrono::milliseconds(0))) && ended;
  }
  return ended;
}

// ---- what others see of it

// Bytes of all its parts: in all, and read so far.
std::pair<std::uint64_t, std::uint64_t> BlockLoads::progress_of(const Batch& batch) const {
  std::uint64_t total = 0, read = 0;
  for (const Part& part : batch.parts) {
    if (part.flight) {
      const std::uint64_t told = part.flight->progress.total_bytes;
      total += told > 0 ? told : part.flight->plan.directory.payload.size;
      read += part.flight->progress.read_bytes;
    } else if (const RamBlock* const block = ram_.blocks.find(part.block)) {
      total += block->payload_bytes();
      read += block->payload_bytes();
    }
  }
  return {total, read};
}

std::vector<BlockLoads::Running> BlockLoads::running() const {
  std::vector<Running> list;
  for (const BatchPtr& batch : batches_) {
    const auto is_led = [&](const Part& part) { return part.flight && part.flight->batches.front() == batch; };
    const auto led = std::ranges::find_if(batch->parts, is_led);
    if (led == batch->parts.end()) continue;
    const auto [total, read] = progress_of(*batch);
    list.push_back({batch->ask.model, batch->ask.path, led->flight->want.identity.type, batch->ask.uid,
                    batch->is_private, total, read});
  }
  return list;
}

void BlockLoads::tell(std::string_view type, const Batch& batch, const std::string& reason) {
  wire::EventData data;
  data.model = batch.ask.model;
  if (!batch.is_private) data.path = batch.ask.path;
  std::tie(data.total_bytes, data.read_bytes) = progress_of(batch);
  data.reason = reason;
  events_.publish(type, data);
}

// Ten times a second while anything is being read.
void BlockLoads::watch_progress() {
  if (std::exchange(watching_progress_, true)) return;
  loop_.after(kProgressEvery, [this] {
    watching_progress_ = false;
    bool reading = false;
    for (const BatchPtr& batch : batches_) {
      if (!batch->is_told) continue;
      reading = true;
      tell("model.progress", *batch);
    }
    if (reading) watch_progress();
  });
}

}  // namespace modelbroker
