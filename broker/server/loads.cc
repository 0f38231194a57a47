#include "broker/server/loads.h"

#include <algorithm>
#include <chrono>
#include <iterator>
#include <set>

#include "broker/ram/sizes.h"
#include "broker/server/log.h"
#include "shm/instruments.h"
#include "wire/frame.h"

namespace modelbroker {
namespace {

constexpr std::size_t kJobsOfOneUser = 16;
constexpr std::chrono::milliseconds kProgressEvery{100};

// Moves those for whom `whose` holds out of `waiters`.
template <class Waiter, class Predicate>
std::vector<Waiter> take_if(std::vector<Waiter>& waiters, Predicate whose) {
  std::vector<Waiter> taken, left;
  for (Waiter& waiter : waiters) (whose(waiter) ? taken : left).push_back(std::move(waiter));
  waiters = std::move(left);
  return taken;
}

}  // namespace

Loads::AskId Loads::start(Ask ask, Done done) {
  const auto waiter = std::make_shared<Waiter>();
  waiter->id = next_id_++;
  waiter->session = ask.session;
  // Who says where it lies: with a descriptor its sender; else we open it there ourselves.
  waiter->path_uid = ask.file ? ask.peer.uid : books_.os.uid();
  waiter->peer = std::move(ask.peer);
  waiter->path = std::move(ask.path);
  waiter->name = std::move(ask.name);
  waiter->type = std::move(ask.type);
  waiter->pin = ask.pin;
  waiter->any_name = ask.any_name;
  waiter->keep_alive = ask.keep_alive;
  waiter->until = ask.until;
  waiter->only = ask.only;
  waiter->name_loader = ask.name_loader;
  waiter->done = std::move(done);
  asking_.push_back(waiter);
  LookOrder order{waiter->peer, waiter->path, books_.rights.everything(waiter->peer.uid), books_.rights.group(),
                  books_.config.model_folders};
  auto file = std::make_shared<Fd>(std::move(ask.file));
  jobs_of(waiter->peer.uid)
      .run([os = &books_.os, order = std::move(order), file] { return look_at_source(*os, order, *file); },
           [this, file, waiter](const Result<Look>& look) { identified(waiter, std::move(*file), look); });
  return waiter->id;
}

Jobs& Loads::jobs_of(uid_t uid) {
  std::unique_ptr<Jobs>& jobs = jobs_[uid];
  if (!jobs) jobs = std::make_unique<Jobs>(loop_, kJobsOfOneUser);
  return *jobs;
}

Resident* Loads::usable(const FileIdentity& source, std::string& outcome) {
  Resident* const resident = books_.store.by_source(source);
  if (resident == nullptr) return nullptr;
  outcome = "resident";
  if (!resident->draining()) return is_missing_(*resident) ? nullptr : resident;
  if (auto revived = books_.store.revive(*resident); !revived) {
    log_warning("block " + resident->block->id() + " cannot be revived: " + revived.error().message);
    return nullptr;
  }
  reaper_.revived(resident->block->id());
  outcome = "revived";
  return resident;
}

void Loads::identified(const WaiterPtr& asking, Fd file, const Result<Look>& look) {
  if (std::erase(asking_, asking) == 0) return;  // withdrawn meanwhile
  Waiter waiter = std::move(*asking);
  if (!look) return waiter.done(tl::unexpected(look.error()));
  waiter.asked = ++looks_;
  waiter.source_uid = look->uid;
  waiter.is_private = look->is_private;
  const FileIdentity* const source = &look->source;
  if (waiter.only && !waiter.only->same_but_ctime(*source)) {
    return waiter.done(fail(ErrorCode::kFailedPrecondition,
                            "'" + wire::printable(waiter.path) + "' is not the file any more that was loaded"));
  }
  if (auto free = naming_.check(waiter, *source, coming_beside(*source)); !free)
    return waiter.done(tl::unexpected(free.error()));
  std::string outcome;
  if (Resident* const resident = usable(*source, outcome)) {
    ++books_.hits;
    finish(waiter, *resident, outcome);
    return drain_if_nameless(*resident);
  }
  ++books_.misses;
  const auto running = std::ranges::find_if(
      flights_, [&](const FlightPtr& flight) { return flight->source == *source && !flight->progress.cancelled; });
  if (running != flights_.end()) {
    const FlightPtr flight = *running;
    const bool is_hastier = flight->asked && waiter.until < flight->until;
    flight->waiters.push_back(std::move(waiter));
    if (!is_hastier) return;
    admission_.withdraw(*flight->asked);
    return admit(flight);
  }
  take_off(std::move(waiter), std::move(file), *source);
}

std::vector<const Claim*> Loads::coming_beside(const FileIdentity& source) const {
  std::vector<const Claim*> claims;
  for (const FlightPtr& flight : flights_) {
    if (flight->source == source) continue;
    for (const Waiter& waiter : flight->waiters) claims.push_back(&waiter);
  }
  return claims;
}

void Loads::take_off(Waiter waiter, Fd file, const FileIdentity& source) {
  auto flight = std::make_shared<Flight>();
  flight->source = source;
  flight->file = std::move(file);
  flight->uid = waiter.peer.uid;
  flight->source_uid = waiter.source_uid;
  flight->is_private = waiter.is_private;
  const LoadIdentity identity{waiter.wanted_name(), waiter.type, wire::printable(waiter.path)};
  flight->waiters.push_back(std::move(waiter));
  flights_.push_back(flight);
  std::shared_ptr<Block> candidate;
  if (const Resident* const alike = books_.store.by_source_but_ctime(source)) {
    candidate = alike->block;
    flight->block_to_compare = candidate->id();
  }
  jobs_of(flight->uid)
      .run(
          [os = &books_.os, flight, identity, candidate]() -> Result<Header> {
            Header header;
            MODELBROKER_ASSIGN(Directory directory, read_directory(*os, flight->file.get(), identity.label));
            if (directory.source != flight->source) {
              return fail(ErrorCode::kDataLoss, "'" + identity.label +
                                                    "' changed while it was being loaded: load it again when "
                                                    "its writer has finished");
            }
            if (candidate) {
              MODELBROKER_ASSIGN(header.same_bytes,
                                 same_bytes(*os, flight->file.get(), directory, *candidate, flight->progress));
            }
            MODELBROKER_ASSIGN(header.plan, plan_load(std::move(directory), identity));
            return header;
          },
          [this, flight](Result<Header> header) { header_read(flight, std::move(header)); });
}

void Loads::header_read(const FlightPtr& flight, Result<Header> header) {
  if (!header) return fail_all(flight, header.error());
  if (header->same_bytes) {
    // chmod, link or rename changed the ctime; the bytes are the block's.
    Resident* const resident = books_.store.by_block(flight->block_to_compare);
    if (resident != nullptr && !resident->removing) {
      resident->source = flight->source;
      std::string outcome;
      if (Resident* const found = usable(flight->source, outcome)) return land(flight, *found, outcome);
    }
  }
  flight->plan = std::move(header->plan);
  admit(flight);
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
  const std::vector<Waiter> hasty = take_if(flight->waiters, is_hasty);
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
  jobs_of(flight->uid)
      .run([os = &books_.os, where = &books_.directory, flight,
            settings] { return load_block(*os, *where, flight->file.get(), flight->plan, settings, flight->progress); },
           [this, flight](Result<Block> block) { landed(flight, std::move(block)); });
}

void Loads::tell(std::string_view type, const Flight& flight, const std::string& reason) {
  wire::EventData data;
  const LoadProgress& progress = flight.progress;
  data.model = flight.waiters.empty() ? flight.plan.manifest.name : flight.waiters.front().wanted_name();
  if (!flight.is_private) data.path = flight.waiters.empty() ? flight.plan.label : flight.waiters.front().path;
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

void Loads::landed(const FlightPtr& flight, Result<Block> block) {
  if (!block) return fail_all(flight, block.error());
  flight->reservation.end();
  ++books_.loads;
  Resident resident;
  resident.block = std::make_shared<Block>(std::move(*block));
  resident.source = flight->source;
  resident.checked = books_.clock.now();
  resident.loader = flight->uid;
  resident.source_uid = flight->source_uid;
  resident.is_private = flight->is_private;
  resident.keep_alive = books_.config.keep_alive;
  resident.seconds_to_load = std::chrono::duration<double>(books_.clock.now() - flight->began).count();
  const Manifest& manifest = resident.block->manifest();
  resident.type = manifest.type;  // its path comes with its name: see Naming::settle()
  Resident& added = books_.store.add(std::move(resident));
  crash_point("load.in_books");
  wire::EventData loaded = event_of(added);
  loaded.model = flight->waiters.empty() ? added.block->manifest().name : flight->waiters.front().wanted_name();
  if (!flight->is_private) loaded.path = flight->plan.label;
  events_.publish("model.loaded", loaded);
  log_info("loaded block " + added.block->id() + " (" + std::string(to_string(added.block->page_kind())) + " pages)");
  land(flight, added, "loaded");
}

void Loads::ended(const FlightPtr& flight) {
  std::erase(flights_, flight);
  if (flight->asked) admission_.withdraw(*std::exchange(flight->asked, std::nullopt));
  if (flight->reservation && flight->reservation.gauge()->has_file()) {
    reaper_.remove_later(std::move(flight->reservation), flight->generation);
  }
  flight->reservation.end();
  admission_.look_again();
}

void Loads::land(const FlightPtr& flight, Resident& resident, const std::string& outcome) {
  ended(flight);
  bool first = true;
  for (Waiter& waiter : flight->waiters) {
    finish(waiter, resident, first ? outcome : "resident");
    first = false;
  }
  drain_if_nameless(resident);
}

// Every name was refused, or nobody waited any more: what nobody can name is not kept.
void Loads::drain_if_nameless(Resident& resident) {
  if (resident.names.empty()) reaper_.drain_nameless(resident);
}

void Loads::fail_all(const FlightPtr& flight, const Error& error) {
  ended(flight);
  if (flight->waiters.empty()) {
    log_info("a load was given up: nobody waits for it any more");
  } else {
    log_warning("load of '" + wire::printable(flight->waiters.front().path) + "' failed: " + error.message);
  }
  // The message of a private file's error may say where that lies.
  const std::string code(to_string(error.code));
  tell("model.load_failed", *flight, flight->is_private ? code : code + ": " + error.message);
  for (const Waiter& waiter : std::exchange(flight->waiters, {})) waiter.done(tl::unexpected(error));
}

void Loads::finish(Waiter& waiter, Resident& resident, std::string outcome) {
  if (auto allowed = naming_.allow(waiter, resident); !allowed) return waiter.done(tl::unexpected(allowed.error()));
  const auto settled = naming_.settle(waiter, resident, outcome);
  if (!settled) return waiter.done(tl::unexpected(settled.error()));
  const std::string& model = settled->name;
  const uid_t manager = waiter.name_loader.value_or(waiter.peer.uid);
  if ((waiter.pin || waiter.keep_alive) && !books_.manages_any(manager, resident)) {
    return waiter.done(tl::unexpected(Rights::not_manageable(model, books_.store.loader_of(model))));
  }
  if (waiter.pin) resident.pinned = true;
  if (waiter.keep_alive) resident.keep_alive = *waiter.keep_alive;
  books_.used(resident);
  // Answered when it is written: what was acknowledged survives a crash.
  ++resident.promised;
  if (Resident* const older = books_.store.by_block(settled->superseded)) ++older->promised;
  keeper_.save(resident, [this, done = waiter.done, result = Outcome{resident.block->id(), model, outcome},
                          superseded = settled->superseded] {
    crash_point("load.written");
    drain_superseded(superseded);
    done(result);
    Resident* const promised = books_.store.by_block(result.block);
    if (promised == nullptr || --promised->promised > 0) return;
    expiry_.changed(*promised);
    admission_.look_again();
  });
}

// Not before the names that it had are written with another block: a death in between would lose them.
void Loads::drain_superseded(const std::string& block) {
  Resident* const older = books_.store.by_block(block);
  if (older == nullptr) return;
  --older->promised;
  if (older->names.empty() && !older->draining()) reaper_.drain_nameless(*older);
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
    std::ranges::move(take_if(flight->waiters, whose), std::back_inserter(out));
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
  if (flight->asked) {
    fail_all(flight, {ErrorCode::kCancelled, "nobody waits for the load"});
  } else {
    admission_.look_again();
  }
}

void Loads::give_up(AskId id) {
  withdraw([&](const Waiter& waiter) { return waiter.id == id; }, std::nullopt);
}

void Loads::session_ended(SessionId session) {
  withdraw([&](const Waiter& waiter) { return waiter.session == session; },
           Error{ErrorCode::kCancelled, "the session that asked for the load has ended"});
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
                  Error{ErrorCode::kCancelled, "the load of '" + wire::printable(model) + "' was cancelled"});
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
