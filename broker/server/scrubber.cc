#include "broker/server/scrubber.h"

#include <algorithm>
#include <map>

#include "broker/ram/sizes.h"
#include "broker/server/log.h"
#include "wire/frame.h"

namespace modelbroker {
namespace {

// So often it looks whether a new block has become due.
constexpr Duration kLookSeldom = std::chrono::seconds(10), kLookOften = std::chrono::milliseconds(50);
constexpr std::chrono::milliseconds kProgressEvery{100};

bool gone(const Resident* resident) {
  return resident == nullptr || resident->draining() || resident->removing || resident->damaged;
}

// The source is another file than what was loaded, or may not be read: it will not be better later.
bool hopeless(ErrorCode code) {
  switch (code) {
    case ErrorCode::kFailedPrecondition:
    case ErrorCode::kNotFound:
    case ErrorCode::kPermissionDenied:
    case ErrorCode::kInvalidArgument:
    case ErrorCode::kDataLoss:
      return true;
    default:
      return false;
  }
}

constexpr const char* kMissing = "its file is not there any more: somebody removed it";

// What a pass reads.
std::uint64_t bytes_of(const BlockLayout& layout) {
  return kPage + layout.manifest.size + layout.chunk_table.size + layout.payload.size;
}

}  // namespace

void Scrubber::check(Ask ask) {
  orders_.push_back(std::make_shared<Order>(Order{std::move(ask), {}, {}, {}}));
  look();
}

bool Scrubber::withdraw_missing(Resident& resident) {
  if (gone(&resident) || !resident.block->is_missing(books_.os)) return false;
  wire::ScrubbedModel found = pass_over(resident)->found;
  found.reason = kMissing;
  withdraw(resident, found);
  return true;
}

void Scrubber::session_ended(SessionId session) {
  const auto stays = [session](const auto& order) { return order->ask.session != session; };
  const auto first = std::stable_partition(orders_.begin(), orders_.end(), stays);
  const std::vector<std::shared_ptr<Order>> ended(first, orders_.end());
  orders_.erase(first, orders_.end());
  for (const std::shared_ptr<Order>& order : ended) {
    order->ask.done(fail(ErrorCode::kCancelled, "the session that asked for the scrub has ended"));
  }
}

bool Scrubber::stop(std::chrono::milliseconds patience) {
  stop_ = true;
  return jobs_.stop(patience);
}

// One chunk is looked at at any time. Who asked goes first; the background waits meanwhile, where it was.
void Scrubber::look() {
  if (running_ || stop_) return;
  PassPtr next = next_asked();
  if (!next) next = next_in_background();
  if (next) run(next);
}

Scrubber::PassPtr Scrubber::pass_over(const Resident& resident) {
  auto pass = std::make_shared<Pass>();
  pass->block = resident.block;
  pass->found.model = resident.name();
  pass->found.block = resident.block->id();
  pass->found.generation = resident.block->name().generation;
  return pass;
}

Scrubber::PassPtr Scrubber::next_asked() {
  while (!orders_.empty()) {
    const std::shared_ptr<Order> order = orders_.front();
    if (!order->ask.wanted()) {
      orders_.pop_front();
      continue;
    }
    while (!order->pass && !order->ask.blocks.empty()) {
      const Resident* const resident = books_.store.by_block(order->ask.blocks.front());
      order->ask.blocks.pop_front();
      if (!gone(resident)) order->pass = pass_over(*resident);
    }
    if (order->pass) return order->pass;
    orders_.pop_front();
    order->ask.done(order->reply);
  }
  return nullptr;
}

Scrubber::PassPtr Scrubber::next_in_background() {
  const TimePoint now = books_.clock.now();
  if (books_.config.scrub_rate == 0) {
    background_.reset();
    return nullptr;
  }
  if (background_ && gone(books_.store.by_block(background_->found.block))) background_.reset();
  TimePoint due = now + std::clamp(books_.config.scrub_interval, kLookOften, kLookSeldom);
  if (!background_) {
    const Resident* first = nullptr;
    for (const auto& [id, resident] : books_.store.all()) {
      if (gone(&resident)) continue;
      // What an earlier broker left was looked at by nobody yet.
      const TimePoint when = resident.checked ? *resident.checked + books_.config.scrub_interval : TimePoint::min();
      if (when >= due) continue;
      due = when;
      first = &resident;
    }
    if (first != nullptr && due <= now) background_ = pass_over(*first);
  }
  if (background_) due = next_at_;
  if (background_ && due <= now) return background_;
  arm(due);
  return nullptr;
}

Scrubber::Piece Scrubber::check_piece(Os& os, const Pass& pass, const std::atomic<bool>& stop) {
  const Block& block = *pass.block;
  const BlockLayout& layout = block.header().layout;
  if (pass.hashes) {
    return {block.check_chunk(os, pass.next, (*pass.hashes)[pass.next], stop), nullptr, layout.chunk(pass.next).size};
  }
  auto hashes = block.check_contents(os);
  if (!hashes) return {tl::unexpected(std::move(hashes).error()), nullptr, 0};
  return {{}, std::make_shared<const ChunkHashes>(std::move(*hashes)), bytes_of(layout) - layout.payload.size};
}

void Scrubber::run(const PassPtr& pass) {
  running_ = pass;
  jobs_.run([os = &books_.os, pass, stop = &stop_] { return check_piece(*os, *pass, *stop); },
            [this, pass, began = books_.clock.now()](Piece piece) { checked(pass, std::move(piece), began); });
}

void Scrubber::checked(const PassPtr& pass, Piece piece, TimePoint began) {
  running_.reset();
  if (piece.outcome) {
    books_.scrubbed_bytes += piece.bytes;
    pass->found.bytes += piece.bytes;
  }
  if (pass == background_) {
    const double rate = static_cast<double>(std::max<std::uint64_t>(books_.config.scrub_rate, 1));
    next_at_ = began + std::chrono::duration_cast<Duration>(
                           std::chrono::duration<double>(static_cast<double>(piece.bytes) / rate));
  }
  Resident* const resident = books_.store.by_block(pass->found.block);
  if (gone(resident)) {
    end(pass, "gone");
  } else if (!piece.outcome) {
    const Error& error = piece.outcome.error();
    pass->found.reason = error.message;
    resident->checked = books_.clock.now();  // whatever it was, not again at once
    if (error.code != ErrorCode::kDataLoss) {
      if (!stop_) log_warning("block " + pass->found.block + " cannot be checked: " + error.message);
      end(pass, "failed");
    } else {
      if (const auto chunk = error.details.find("chunk"); chunk != error.details.end()) {
        pass->found.chunk = chunk->second;
      }
      pass->found.offset = error.details.at("offset");
      withdraw(*resident, pass->found);
      end(pass, "damaged");
    }
  } else if (piece.hashes && withdraw_missing(*resident)) {
    pass->found.reason = kMissing;
    end(pass, "damaged");
  } else {
    if (piece.hashes) {
      pass->hashes = std::move(piece.hashes);
    } else {
      ++pass->next;
    }
    tell_progress();
    if (pass->next == pass->hashes->size()) {
      resident->checked = books_.clock.now();
      end(pass, "good");
    }
  }
  look();
}

void Scrubber::end(const PassPtr& pass, const char* outcome) {
  if (pass == background_) background_.reset();
  for (const std::shared_ptr<Order>& order : orders_) {
    if (order->pass != pass) continue;
    order->pass.reset();
    pass->found.outcome = outcome;
    order->reply.bytes += pass->found.bytes;
    if (pass->found.outcome == "damaged") ++order->reply.damaged;
    order->reply.models.push_back(pass->found);
  }
}

void Scrubber::tell_progress() {
  if (orders_.empty() || !orders_.front()->pass) return;
  Order& order = *orders_.front();
  const TimePoint now = books_.clock.now();
  if (now < order.told + kProgressEvery) return;
  order.told = now;
  wire::EventData data;
  data.model = order.pass->found.model;
  data.block = order.pass->found.block;
  data.read_bytes = order.pass->found.bytes;
  data.total_bytes = bytes_of(order.pass->block->header().layout);
  events_.publish("model.scrubbing", data);
}

// A path that a member of the group told with a descriptor is a label.
bool Scrubber::is_ours_to_open(const GivenName& given) const {
  return given.path.starts_with('/') && books_.rights.everything(given.path_uid);
}

// Its names go on: who attaches by one waits for the load that begins here.
void Scrubber::withdraw(Resident& resident, const wire::ScrubbedModel& found) {
  ++books_.scrub_errors;
  resident.damaged = true;
  const auto reload = std::make_shared<Reload>();
  reload->is_private = resident.is_private;
  for (auto& [name, model] : books_.names_of(resident)) {
    if (!is_ours_to_open(model.given)) continue;
    model.damaged = true;
    reload->names.push_back({name, 0, model});
  }
  const bool again = !reload->names.empty();
  const std::string where =
      found.reason == kMissing ? " is missing: " : " is damaged at offset " + std::to_string(found.offset) + ": ";
  log_error("block " + found.block + " of '" + wire::printable(found.model) + "'" + where + found.reason +
            "; withdrawn" + (again ? ", and loaded again" : "") + ". Workers holding this block should re-attach");
  wire::EventData data = event_of(resident);
  data.reason = found.reason;
  data.chunk = found.chunk;
  data.offset = found.offset;
  data.outcome = again ? "reloading" : "gone";
  events_.publish("model.damaged", data);
  // In one write: a death in between would lose the names.
  for (auto& [name, position, model] : reload->names) position = books_.evicted.remember(name, model);
  reaper_.drain_in_time(resident);
  // Not before that is written: if the load kills the broker, the next one knows what was damaged.
  keeper_.when_written([this, reload] { begin(reload); });
}

void Scrubber::begin(const ReloadPtr& reload) {
  reloads_.push_back(reload);
  load_again(reload);
}

// Try once only: if reloading crashes the broker, every successor would crash too.
void Scrubber::load_damaged_again() {
  std::map<std::pair<std::uint64_t, std::uint64_t>, ReloadPtr> of_file;
  for (EvictedNames::Named& named : books_.evicted.all()) {
    const std::optional<FileIdentity>& source = named.model.source;
    if (!named.model.damaged || !source || !is_ours_to_open(named.model.given)) continue;
    ReloadPtr& reload = of_file[{source->device, source->inode}];
    if (!reload) {
      reload = std::make_shared<Reload>();
      reload->is_private = reload->at_start = true;  // for all that is known
    }
    EvictedNames::Model tried = named.model;
    tried.damaged = false;
    named.position = books_.evicted.remember(named.name, std::move(tried));
    reload->names.push_back(std::move(named));
  }
  if (of_file.empty()) return;
  keeper_.save_evicted([this, of_file] {
    for (const auto& [file, reload] : of_file) begin(reload);
  });
}

// There is no room for it, or its file may come back: whoever attaches it tries again, with what lies there then.
void Scrubber::leave_to_others(const ReloadPtr& reload) {
  for (EvictedNames::Named& named : reload->names) {
    if (!books_.evicted.has(named)) continue;
    named.model.damaged = false;
    books_.evicted.remember(named.name, named.model);
  }
  keeper_.save_evicted();
  std::erase(reloads_, reload);
}

// One name after the other, so that the first stays the first; all but the first find it resident.
void Scrubber::load_again(const ReloadPtr& reload) {
  // A name that is not among the evicted ones any more was unloaded, or is there by now.
  while (reload->next < reload->names.size() && !books_.evicted.has(reload->names[reload->next])) ++reload->next;
  if (reload->next == reload->names.size()) {
    std::erase(reloads_, reload);
    return;
  }
  const auto& [name, position, model] = reload->names[reload->next];
  Loads::Ask ask;
  ask.peer.uid = books_.os.uid();
  ask.path = model.given.path;
  ask.name = name;
  ask.name_loader = model.given.loader;
  ask.type = model.type;
  ask.pin = model.pinned;
  ask.keep_alive = model.keep_alive;
  ask.only = model.source;
  reload->asked =
      loads_.start(std::move(ask), [this, reload, at = reload->next](const Result<Loads::Outcome>& outcome) {
        if (reload->next == at) loaded_again(reload, outcome);  // else its name was unloaded when it had landed already
      });
}

void Scrubber::loaded_again(const ReloadPtr& reload, const Result<Loads::Outcome>& outcome) {
  const EvictedNames::Named& named = reload->names[reload->next];
  const auto& [name, position, model] = named;
  const bool taken = !outcome && outcome.error().code == ErrorCode::kAlreadyExists;  // meanwhile
  if (!outcome && !taken) {
    const Error& error = outcome.error();
    log_error("'" + wire::printable(model.given.path) + "' cannot be loaded again: " + error.message);
    const bool may_come = reload->at_start && error.code == ErrorCode::kNotFound;  // its file system is not there yet
    const bool is_deadly = error.details.contains("deaths");                       // 'load --retry' may bring it back
    if (may_come || is_deadly || !hopeless(error.code)) return leave_to_others(reload);
    if (books_.evicted.has(named)) {  // else it is there by now, or another
      books_.evicted.forget(name);
      keeper_.save_evicted();
      wire::EventData data;
      data.model = name;
      data.reason = to_string(error.code);
      if (!reload->is_private) {
        data.path = model.given.path;
        data.reason += ": " + error.message;
      }
      events_.publish("model.unloaded", data);
    }
  }
  ++reload->next;
  load_again(reload);
}

void Scrubber::forgotten(const std::string& name) {
  const std::vector<ReloadPtr> reloads = reloads_;
  for (const ReloadPtr& reload : reloads) {
    if (reload->names[reload->next].name != name) continue;
    loads_.give_up(reload->asked);
    ++reload->next;
    load_again(reload);
  }
}

void Scrubber::arm(TimePoint when) {
  if (timer_) loop_.cancel(*timer_);
  timer_ = loop_.after(std::max(when - books_.clock.now(), Duration(0)), [this] {
    timer_.reset();
    look();
  });
}

}  // namespace modelbroker
