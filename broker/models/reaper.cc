#include "broker/models/reaper.h"

#include <sys/epoll.h>

#include <algorithm>

#include "broker/base/log.h"
#include "broker/base/sizes.h"
#include "broker/models/model_events.h"

namespace modelbroker {
namespace {
constexpr std::chrono::seconds kSlowly{2};
}

Reaper::Reaper(Books& books, Loop& loop, Jobs& jobs, StateKeeper& keeper, EventSink& events)
    : books_(books), loop_(loop), jobs_(jobs), keeper_(keeper), events_(events) {
  // Without inotify the timer alone must do.
  auto inotify = books_.os.inotify_create();
  if (!inotify) return;
  inotify_ = std::move(*inotify);
  auto watching = loop_.watch(inotify_.get(), EPOLLIN, [this](std::uint32_t) {
    const auto fired = books_.os.inotify_read(inotify_.get());
    if (!fired) return;
    for (const int watch : *fired) {
      const auto found = block_of_watch_.find(watch);
      if (found != block_of_watch_.end()) check(std::string(found->second));
    }
  });
  if (watching) inotify_watch_ = *watching;
}

Reaper::~Reaper() {
  if (inotify_watch_ != 0) loop_.unwatch(inotify_watch_);
}

Result<void> Reaper::withdraw(Resident& resident, const Books::GoneNames& remembered) {
  if (auto drained = books_.store.drain(resident); !drained) {
    log_error("block " + resident.block->id() + " cannot be withdrawn: " + drained.error().message);
    return drained;
  }
  for (const auto& [name, model] : remembered) books_.evicted.remember(name, model);
  keeper_.save(resident);
  watch(resident);
  arm_timer();
  return {};
}

Result<void> Reaper::drain(Resident& resident, std::function<void(bool)> freed, std::string_view event) {
  const wire::EventData data = event_of(resident);  // while it still has its name
  MODELBROKER_TRY(withdraw(resident));
  if (!event.empty()) events_.publish(event, data);
  if (!nobody_has(resident)) {
    events_.publish("model.draining", data);
    if (freed) freed(false);
    return {};
  }
  if (freed) waiting_.emplace(resident.block->id(), std::move(freed));
  if (!resident.removing) start_removing(resident);
  return {};
}

void Reaper::drain_in_time(Resident& resident) {
  if (!drain(resident)) arm_timer();
}

bool Reaper::evict(Resident& resident, const std::string& reason) {
  const std::uint64_t bytes = resident.bytes();
  wire::EventData data = event_of(resident);
  if (!withdraw(resident, books_.names_of(resident))) return false;
  data.reason = reason;
  events_.publish("model.evicted", data);
  books_.cache_age = std::max(books_.cache_age, resident.value);
  ++books_.evictions;
  log_info("evicting " + resident.block->id() + " (" + format_size(bytes) + "): " + reason);
  start_removing(resident);
  return true;
}

bool Reaper::nobody_has(const Resident& resident) const {
  if (books_.leases.count(resident.block->id()) > 0) return false;
  const auto unmapped = resident.block->unmapped_everywhere(books_.os);
  if (unmapped) return *unmapped;
  // No word from this kernel: our own books must do, for an adopted block once every holder had time to state its
  // lease.
  if (unmapped.error().code == ErrorCode::kUnimplemented) {
    return !resident.adopted || books_.clock.now() >= books_.started + books_.config.grace;
  }
  log_warning("block " + resident.block->id() + ": " + unmapped.error().message);
  return false;
}

void Reaper::check(const std::string& block) {
  Resident* const resident = books_.store.by_block(block);
  if (resident != nullptr && resident->draining() && !resident->removing && nobody_has(*resident)) {
    start_removing(*resident);
  }
}

void Reaper::check_all() {
  std::vector<std::string> draining, unwanted;
  for (const auto& [id, resident] : books_.store.all()) {
    if (resident.draining()) draining.push_back(id);
    // One that was promised, or superseded, is seen to when that is written.
    const bool is_nameless = resident.names.empty() && resident.promised == 0;
    if (!resident.draining() && (is_nameless || resident.damaged)) unwanted.push_back(id);
  }
  for (const std::string& block : draining) check(block);
  for (const std::string& block : unwanted) drain_in_time(*books_.store.by_block(block));
  remove_orphans();
  if (!draining.empty() || !orphans_.empty()) arm_timer();
}

void Reaper::take_over_draining() {
  for (const auto& [id, resident] : books_.store.all()) {
    if (resident.draining()) watch(resident);
  }
  check_all();
}

void Reaper::start_removing(Resident& resident) {
  resident.removing = true;
  jobs_.run([os = &books_.os, block = resident.block] { return block->remove(*os); },
            [this, id = resident.block->id(), bytes = resident.bytes()](const Result<void>& outcome) {
              removed(id, bytes, outcome);
            });
}

void Reaper::removed(const std::string& block, std::uint64_t bytes, const Result<void>& outcome) {
  Resident* const resident = books_.store.by_block(block);
  if (!outcome) {
    log_error("block " + block + " cannot be freed: " + outcome.error().message);
    if (resident != nullptr) resident->removing = false;  // the timer tries again
  } else if (resident != nullptr) {
    log_info("freed " + format_size(bytes) + ": block " + block);
    wire::EventData data = event_of(*resident);
    data.bytes = bytes;
    events_.publish("model.freed", data);
    unwatch(block);
    books_.store.erase(block);
    keeper_.erase(block);
  }
  auto waiting = waiting_.extract(block);
  for (; !waiting.empty(); waiting = waiting_.extract(block)) waiting.mapped()(outcome.has_value());
  if (outcome) tell_gone(block, true);
  freed_();
}

void Reaper::remove_later(Budget::Reservation reservation, std::uint64_t generation) {
  orphans_.emplace(generation, std::move(reservation));
  arm_timer();
}

void Reaper::remove_orphans() {
  for (const auto& [generation, reservation] : orphans_) {
    const std::string path = books_.directory.path_of(books_.directory.temporary(generation));
    jobs_.run([os = &books_.os, gauge = reservation.gauge(), path] { return gauge->remove(*os, path).has_value(); },
              [this, generation = generation](bool removed) {
                if (!removed) return;  // the timer tries again
                orphans_.erase(generation);
                freed_();
              });
  }
}

void Reaper::tell_gone(const std::string& block, bool gone) {
  auto waiting = gone_.extract(block);
  for (; !waiting.empty(); waiting = gone_.extract(block)) waiting.mapped()(gone);
}

void Reaper::when_gone(const std::string& block, std::function<void(bool gone)> told) {
  if (books_.store.by_block(block) == nullptr) return told(true);
  gone_.emplace(block, std::move(told));
}

void Reaper::revived(const std::string& block) {
  unwatch(block);
  tell_gone(block, false);
}

void Reaper::watch(const Resident& resident) {
  if (!inotify_) return;
  const auto watch = books_.os.inotify_watch_close(inotify_.get(), resident.block->path());
  if (watch) block_of_watch_[*watch] = resident.block->id();
}

void Reaper::unwatch(const std::string& block) {
  for (auto entry = block_of_watch_.begin(); entry != block_of_watch_.end();) {
    if (entry->second == block) {
      (void)books_.os.inotify_unwatch(inotify_.get(), entry->first);
      entry = block_of_watch_.erase(entry);
    } else {
      ++entry;
    }
  }
}

void Reaper::arm_timer() {
  if (timer_armed_) return;
  timer_armed_ = true;
  loop_.after(kSlowly, [this] {
    timer_armed_ = false;
    check_all();
  });
}

}  // namespace modelbroker
