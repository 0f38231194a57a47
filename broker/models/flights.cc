// A flight: header and plan, admission, the reading, and what becomes of it.
#include <algorithm>
#include <chrono>
#include <utility>

#include "broker/base/log.h"
#include "broker/base/sizes.h"
#include "broker/models/flight_step.h"
#include "broker/ram/room.h"
#include "shm/instruments.h"
#include "shm/text.h"
#include "wire/frame.h"

namespace modelbroker {
namespace {

constexpr std::chrono::milliseconds kProgressEvery{100};

}  // namespace

void Loads::take_off(Waiter waiter, Fd file, const FileIdentity& source) {
  auto flight = std::make_shared<Flight>();
  flight->source = source;
  flight->noted = {source, waiter.path, waiter.is_label};
  flight->file = std::move(file);
  flight->uid = waiter.peer.uid;
  flight->source_uid = waiter.source_uid;
  flight->is_private = waiter.is_private;
  flight->loader = flight->uid;
  if (waiter.name_loader) {
    // Who loaded it before it was evicted or damaged, if it is the same file.
    const RememberedNames::Model* const known = books_.models.remembered().find(waiter.name);
    const bool is_same = known != nullptr && known->source && known->source->same_but_ctime(source);
    if (is_same) flight->loader = *waiter.name_loader;
  }
  const LoadIdentity identity{waiter.wanted_name(), waiter.type, waiter.path, printable(waiter.path)};
  flight->waiters.push_back(std::move(waiter));
  flights_.push_back(flight);
  name_first(*flight);
  const auto read_header = [os = &books_.os, notes = &notes_, identity](Flight& of) -> Result<LoadPlan> {
    LoadNotes::Note note = notes->write(of.noted);
    MODELBROKER_ASSIGN(Directory directory, read_directory(*os, of.file.get(), identity.label));
    if (!directory.source.alike(of.source)) {
      return fail(ErrorCode::kDataLoss, "'" + identity.label +
                                            "' changed while it was being loaded: load it again when "
                                            "its writer has finished");
    }
    MODELBROKER_ASSIGN(LoadPlan plan, plan_load(std::move(directory), identity));
    std::move(note).pause();  // while it waits for its admission
    return plan;
  };
  run(flight, read_header, &Loads::header_read);
}

void Loads::join(const FlightPtr& flight, Waiter waiter) {
  const uid_t uid = waiter.peer.uid;
  const bool is_hastier = flight->asked && waiter.until < flight->until;
  flight->waiters.push_back(std::move(waiter));
  if (flight->offer) flight->offer(uid);
  if (!is_hastier) return;
  admission_.withdraw(*flight->asked);
  admit(flight);
}

void Loads::header_read(const FlightPtr& flight, Result<LoadPlan> plan) {
  if (!plan) return fail_all(flight, plan.error());
  flight->plan = std::move(*plan);
  // Before anything is evicted for it.
  if (auto fits = check_file_limit(flight->plan.layout.block_size, "'" + flight->plan.label + "'"); !fits) {
    return fail_all(flight, fits.error());
  }
  find_same(flight);
}

void Loads::admit(const FlightPtr& flight) {
  if (flight->waiters.empty()) return fail_all(flight, {ErrorCode::kCancelled, "nobody waits for the load"});
  const auto then = [this, flight](Result<Budget::Reservation> admitted) {
    flight->asked.reset();
    if (!admitted) return refused(flight, admitted.error());
    flight->reservation = std::move(*admitted);
    read(flight);
  };
  flight->until = std::ranges::min_element(flight->waiters, {}, &Waiter::until)->until;
  flight->asked = admission_.ask({flight->plan.layout.block_size, "'" + flight->plan.label + "'", flight->until}, then,
                                 flight->place);
  flight->place = flight->asked;
}

// Who gave no deadline, or none that is later than what was waited for, hears it now; the others wait for room.
void Loads::refused(const FlightPtr& flight, const Error& error) {
  const auto is_hasty = [waited = flight->until](const Waiter& waiter) { return waiter.until <= waited; };
  if (std::ranges::all_of(flight->waiters, is_hasty) || flight->plan.layout.block_size > books_.budget.limit()) {
    return fail_all(flight, error);
  }
  const std::vector<Waiter> hasty = take_out(*flight, is_hasty);
  admit(flight);
  for (const Waiter& waiter : hasty) waiter.done(tl::unexpected(error));
}

void Loads::read(const FlightPtr& flight) {
  flight->began = books_.clock.now();
  flight->generation = books_.new_generation();
  LoadSettings settings;
  settings.generation = flight->generation;
  settings.broker_boot_id = books_.boot_id;
  settings.huge_pages = books_.config.huge_pages;
  settings.threads = books_.config.load_threads;
  if (!flight->is_private) settings.group = books_.rights.group();
  settings.gauge = flight->reservation.gauge();
  settings.headroom.emplace(books_.os, books_.config.memory_reserve);
  const Directory& directory = flight->plan.directory;
  tell("model.loading", *flight);
  watch_progress();
  log_info("loading '" + flight->plan.label + "': " + format_size(directory.payload.size) + ", " +
           std::to_string(directory.tensors.size()) + " tensors");
  const auto load = [os = &books_.os, where = &books_.directory, notes = &notes_, settings](Flight& of) {
    const LoadNotes::Note note = notes->write(of.noted);
    return load_block(*os, *where, of.file.get(), of.plan, settings, of.progress);
  };
  run(flight, load, &Loads::landed);
}

// Who is first among those who wait, by whose name and path events tell of it.
void Loads::name_first(Flight& flight) {
  if (flight.waiters.empty()) return;
  flight.told_model = flight.waiters.front().wanted_name();
  flight.told_path = flight.waiters.front().path;
}

// Who asked first waits no longer: the load goes on by the name of the next.
void Loads::hand_on(Flight& flight) {
  const bool is_told = static_cast<bool>(flight.reservation);
  if (is_told) tell("model.load_failed", flight, "cancelled: it goes on for others");
  name_first(flight);
  if (is_told) tell("model.loading", flight);
}

void Loads::tell(std::string_view type, const Flight& flight, const std::string& reason) {
  wire::EventData data;
  const LoadProgress& progress = flight.progress;
  data.model = flight.told_model;
  if (!flight.is_private) data.path = flight.told_path;
  data.total_bytes = progress.total_bytes > 0 ? progress.total_bytes.load() : flight.plan.directory.payload.size;
  data.read_bytes = progress.read_bytes;
  data.reason = reason;
  events_.publish(type, data);
}

// Ten times a second while anything is being read.
void Loads::watch_progress() {
  if (std::exchange(watching_progress_, true)) return;
  loop_.after(kProgressEvery, [this] {
    watching_progress_ = false;
    bool reading = false;
    for (const FlightPtr& flight : flights_) {
      if (!flight->reservation) continue;
      reading = true;
      tell("model.progress", *flight);
    }
    if (reading) watch_progress();
  });
}

void Loads::landed(const FlightPtr& flight, Result<LoadedBlock> loaded) {
  if (!loaded) return fail_all(flight, loaded.error());
  flight->reservation.end();
  ++books_.loads;
  RamBlock block(std::move(loaded->block));
  block.sources.push_back({flight->told_path, loaded->source});
  block.checked = books_.clock.now();
  block.loader = flight->loader;
  block.source_uid = flight->source_uid;
  block.is_private = flight->is_private;
  block.seconds_to_load = std::chrono::duration<double>(books_.clock.now() - flight->began).count();
  RamBlock& added = books_.blocks.add(std::move(block));
  crash_point("load.in_books");
  log_info("loaded block " + added.id() + " (" + std::string(to_string(added.block->page_kind())) + " pages)");
  land(flight, added, "loaded");
}

void Loads::ended(const FlightPtr& flight) {
  std::erase(flights_, flight);
  flight->offer = {};
  if (flight->asked) admission_.withdraw(*std::exchange(flight->asked, std::nullopt));
  if (flight->reservation && flight->reservation.gauge()->has_file()) {
    reaper_.remove_later(std::move(flight->reservation), flight->generation);
  }
  flight->reservation.end();
  unpark();
  admission_.look_again();
}

void Loads::land(const FlightPtr& flight, RamBlock& block, const std::string& outcome) {
  ended(flight);
  bool first = true, is_told = false;
  for (Waiter& waiter : flight->waiters) {
    const auto name = finish(waiter, block, first ? outcome : "resident");
    first = first && !name;
    is_told = is_told || name == flight->told_model;
  }
  if (outcome == "loaded" && !is_told) {
    tell("model.load_failed", *flight, first ? "cancelled: nobody could have it" : "cancelled: it got another name");
  }
  drain_if_unwanted(block);
}

// Every name was refused, or nobody waited any more: what nobody can name is not kept.
void Loads::drain_if_unwanted(RamBlock& block) {
  if (block.unwanted()) reaper_.drain(block);
}

void Loads::fail_all(const FlightPtr& flight, const Error& error) {
  ended(flight);
  if (flight->waiters.empty()) {
    log_info("a load was given up: nobody waits for it any more");
  } else {
    log_warning("load of '" + printable(flight->waiters.front().path) + "' failed: " + error.message);
  }
  // The message of a private file's error may say where that lies.
  const std::string code(to_string(error.code));
  tell("model.load_failed", *flight, flight->is_private ? code : code + ": " + error.message);
  for (const Waiter& waiter : std::exchange(flight->waiters, {})) waiter.done(tl::unexpected(error));
}

}  // namespace modelbroker
