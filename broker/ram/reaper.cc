#include "broker/ram/reaper.h"

#include <sys/epoll.h>

#include <algorithm>

#include "broker/base/log.h"
#include "broker/base/sizes.h"
#include "broker/ram/block_events.h"

namespace modelbroker {
namespace {
constexpr std::chrono::seconds kSlowly{2};
}

Reaper::Reaper(Environment& env, RamStore& ram, const LeaseBook& leases, Loop& loop, Jobs& jobs, EventSink& events)
    : env_(env), ram_(ram), leases_(leases), loop_(loop), jobs_(jobs), events_(events) {
  // Without inotify the timer alone must do.
  auto inotify = env_.os.inotify_create();
  if (!inotify) return;
  inotify_ = std::move(*inotify);
  auto watching = loop_.watch(inotify_.get(), EPOLLIN, [this](std::uint32_t) {
    const auto fired = env_.os.inotify_read(inotify_.get());
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

Result<void> Reaper::withdraw(RamBlock& block) {
  if (auto drained = ram_.blocks.drain(block); !drained) {
    log_error("block " + block.id() + " cannot be withdrawn: " + drained.error().message);
    return drained;
  }
  block.is_spare = false;
  watch(block);
  arm_timer();
  return {};
}

bool Reaper::free(RamBlock& block, std::function<void(bool)> freed) {
  if (!nobody_has(block)) return false;
  if (freed) waiting_.emplace(block.id(), std::move(freed));
  if (!block.removing) start_removing(block);
  return true;
}

void Reaper::drain(RamBlock& block) {
  if (!withdraw(block)) return arm_timer();
  changed_(block.id());
  if (!free(block)) events_.publish("model.draining", event_of(block));
}

void Reaper::drain_unwanted(RamBlock& block) {
  if (block.unwanted() && !block.draining()) drain(block);
}

bool Reaper::nobody_has(const RamBlock& block) const {
  if (leases_.count(block.id()) > 0) return false;
  const auto unmapped = block.block->unmapped_everywhere(env_.os);
  if (unmapped) return *unmapped;
  // No word from this kernel: our own leases must do, for an adopted block once every holder had time to state its
  // lease.
  if (unmapped.error().code == ErrorCode::kUnimplemented) {
    return !block.adopted || env_.clock.now() >= env_.started + env_.config.grace;
  }
  log_warning("block " + block.id() + ": " + unmapped.error().message);
  return false;
}

void Reaper::check(const std::string& id) {
  RamBlock* const block = ram_.blocks.find(id);
  if (block != nullptr && block->draining() && !block->removing) free(*block);
}

void Reaper::check_all() {
  std::vector<std::string> draining, unwanted;
  for (const auto& [id, block] : ram_.blocks.all()) {
    if (block.draining()) {
      draining.push_back(id);
    } else if (block.unwanted()) {
      unwanted.push_back(id);
    }
  }
  for (const std::string& id : draining) check(id);
  for (const std::string& id : unwanted) drain(*ram_.blocks.find(id));
  remove_orphans();
  if (!draining.empty() || !orphans_.empty()) arm_timer();
}

void Reaper::take_over_draining() {
  for (const auto& [id, block] : ram_.blocks.all()) {
    if (block.draining()) watch(block);
  }
  check_all();
}

void Reaper::start_removing(RamBlock& block) {
  block.removing = true;
  jobs_.run(
      [os = &env_.os, file = block.block] { return file->remove(*os); },
      [this, id = block.id(), bytes = block.bytes()](const Result<void>& outcome) { removed(id, bytes, outcome); });
}

void Reaper::removed(const std::string& id, std::uint64_t bytes, const Result<void>& outcome) {
  RamBlock* const block = ram_.blocks.find(id);
  if (!outcome) {
    log_error("block " + id + " cannot be freed: " + outcome.error().message);
    if (block != nullptr) block->removing = false;  // the timer tries again
  } else if (block != nullptr) {
    log_info("freed " + format_size(bytes) + ": block " + id);
    wire::EventData data = event_of(*block);
    data.bytes = bytes;
    events_.publish("model.freed", data);
    unwatch(id);
    ram_.blocks.erase(id);
    changed_(id);
  }
  auto waiting = waiting_.extract(id);
  for (; !waiting.empty(); waiting = waiting_.extract(id)) waiting.mapped()(outcome.has_value());
  if (outcome) tell_gone(id, true);
  freed_();
}

void Reaper::remove_later(Budget::Reservation reservation, std::uint64_t generation) {
  orphans_.emplace(generation, std::move(reservation));
  arm_timer();
}

void Reaper::remove_orphans() {
  for (const auto& [generation, reservation] : orphans_) {
    const std::string path = ram_.directory.path_of(ram_.directory.temporary(generation));
    jobs_.run([os = &env_.os, gauge = reservation.gauge(), path] { return gauge->remove(*os, path).has_value(); },
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
  if (ram_.blocks.find(block) == nullptr) return told(true);
  gone_.emplace(block, std::move(told));
}

void Reaper::revived(const std::string& block) {
  unwatch(block);
  tell_gone(block, false);
}

void Reaper::watch(const RamBlock& block) {
  if (!inotify_) return;
  const auto watch = env_.os.inotify_watch_close(inotify_.get(), block.block->path());
  if (watch) block_of_watch_[*watch] = block.id();
}

void Reaper::unwatch(const std::string& block) {
  for (auto entry = block_of_watch_.begin(); entry != block_of_watch_.end();) {
    if (entry->second == block) {
      (void)env_.os.inotify_unwatch(inotify_.get(), entry->first);
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
