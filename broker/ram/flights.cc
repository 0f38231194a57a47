// A flight: header and plan, the reading, and what becomes of it.
#include <algorithm>
#include <chrono>
#include <utility>

#include "broker/base/log.h"
#include "broker/base/sizes.h"
#include "broker/ram/flight_step.h"
#include "broker/ram/room.h"
#include "shm/instruments.h"
#include "shm/text.h"

namespace modelbroker {

void BlockLoads::take_off(const FlightPtr& flight) {
  const Want& want = flight->want;
  flight->noted = {want.look.source, want.identity.path, want.look.is_label};
  const auto read_header = [os = &env_.os, notes = &notes_](Flight& of) -> Result<LoadPlan> {
    LoadNotes::Note note = notes->write(of.noted);
    const LoadIdentity& identity = of.want.identity;
    MODELBROKER_ASSIGN(Directory directory, read_directory(*os, of.want.file.get(), identity.label));
    if (!directory.source.alike(of.want.look.source)) {
      return modelbroker::fail(ErrorCode::kDataLoss, "'" + identity.label +
                                                         "' changed while it was being loaded: load it again when "
                                                         "its writer has finished");
    }
    MODELBROKER_ASSIGN(LoadPlan plan, plan_load(std::move(directory), identity));
    std::move(note).pause();  // while it waits for its admission
    return plan;
  };
  run(flight, read_header, &BlockLoads::header_read);
}

void BlockLoads::header_read(const FlightPtr& flight, Result<LoadPlan> plan) {
  if (!plan) return crash(flight, plan.error());
  flight->plan = std::move(*plan);
  // Before anything is evicted for it.
  if (auto fits = check_file_limit(flight->plan.layout.block_size, "'" + flight->plan.label + "'"); !fits) {
    return crash(flight, fits.error());
  }
  find_same(flight);
}

void BlockLoads::read(const FlightPtr& flight, Budget::Reservation reservation) {
  flight->phase = Phase::kReading;
  flight->reservation = std::move(reservation);
  flight->began = env_.clock.now();
  flight->generation = ram_.new_generation(env_.os);
  LoadSettings settings;
  settings.generation = flight->generation;
  settings.broker_boot_id = env_.boot_id;
  settings.huge_pages = env_.config.huge_pages;
  settings.threads = env_.config.load_threads;
  if (!flight->want.look.is_private) settings.group = rights_.group();
  settings.gauge = flight->reservation.gauge();
  settings.headroom.emplace(env_.os, env_.config.memory_reserve);
  const Directory& directory = flight->plan.directory;
  Batch& leader = *flight->batches.front();
  if (!std::exchange(leader.is_told, true)) tell("model.loading", leader);
  watch_progress();
  log_info("loading '" + flight->plan.label + "': " + format_size(directory.payload.size) + ", " +
           std::to_string(directory.tensors.size()) + " tensors");
  const auto load = [os = &env_.os, where = &ram_.directory, notes = &notes_, settings](Flight& of) {
    const LoadNotes::Note note = notes->write(of.noted);
    return load_block(*os, *where, of.want.file.get(), of.plan, settings, of.progress);
  };
  run(flight, load, &BlockLoads::landed);
}

void BlockLoads::landed(const FlightPtr& flight, Result<LoadedBlock> loaded) {
  if (!loaded) return crash(flight, loaded.error());
  flight->reservation.end();
  ++env_.counters.loads;
  const Want& want = flight->want;
  RamBlock block(std::move(loaded->block));
  block.sources.push_back({want.identity.path, loaded->source});
  block.checked = env_.clock.now();
  block.loader = want.loader;
  block.source_uid = want.look.uid;
  block.is_private = want.look.is_private;
  block.seconds_to_load = std::chrono::duration<double>(env_.clock.now() - flight->began).count();
  RamBlock& added = ram_.blocks.add(std::move(block));
  crash_point("load.in_books");
  log_info("loaded block " + added.id() + " (" + std::string(to_string(added.block->page_kind())) + " pages)");
  land(flight, added, Outcome::kLoaded);
}

// For the first as it came to be here, for the others as what is resident. What nobody wants any more is not kept.
void BlockLoads::land(const FlightPtr& flight, RamBlock& block, Outcome how) {
  ++block.promised;
  ended(flight);
  bool is_first = true;
  for (const BatchPtr& batch : std::exchange(flight->batches, {})) {
    got(batch, flight, block, std::exchange(is_first, false) ? how : Outcome::kResident);
  }
  let_go(block.id());
}

void BlockLoads::crash(const FlightPtr& flight, const Error& error) {
  if (flight->batches.empty()) log_info("a load was given up: nobody waits for it any more");
  while (!flight->batches.empty()) fail(BatchPtr(flight->batches.back()), error);  // who leads tells of it, at the end
  ended(flight);
}

// Nobody wants it any more: it ends now, or when its job comes back.
void BlockLoads::abandon(const FlightPtr& flight) {
  flight->progress.cancelled = true;
  flight->reservation.give_up(env_.clock.now());
  if (flight->phase == Phase::kParked || flight->phase == Phase::kPlanned) return ended(flight);
  unpark();
  admission_.look_again();
}

void BlockLoads::ended(const FlightPtr& flight) {
  if (std::erase(flights_, flight) == 0) return;
  flight->offer = {};
  if (flight->reservation && flight->reservation.gauge()->has_file()) {
    reaper_.remove_later(std::move(flight->reservation), flight->generation);
  }
  flight->reservation.end();
  unpark();
  admission_.look_again();
}

}  // namespace modelbroker
