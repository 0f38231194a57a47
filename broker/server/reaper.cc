#include "broker/server/reaper.h"

#include <sys/epoll.h>

#include "broker/server/log.h"

namespace modelbroker {
namespace {
constexpr std::chrono::seconds kSlowly{2};
}

Reaper::Reaper(Books& books, Loop& loop, Jobs& jobs, StateKeeper& keeper)
    : books_(books), loop_(loop), jobs_(jobs), keeper_(keeper) {
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

void Reaper::drain(Resident& resident, std::function<void(bool)> freed) {
  const std::string block = resident.block->id();
  const auto answer = [&](bool gone) {
    if (freed) freed(gone);
  };
  if (auto drained = books_.store.drain(resident); !drained) {
    log_error("block " + block + " cannot be withdrawn: " + drained.error().message);
    return answer(false);
  }
  keeper_.save(resident);
  watch(resident);
  arm_timer();
  if (!unheld(resident)) return answer(false);
  if (freed) waiting_.emplace(block, std::move(freed));
  if (!resident.removing) start_removing(resident);
}

bool Reaper::unheld(const Resident& resident) const {
  if (books_.leases.count(resident.block->id()) > 0) return false;
  const auto unmapped = resident.block->unmapped_everywhere(books_.os);
  if (unmapped) return *unmapped;
  // No word from this kernel: our own books must do, once every holder had time to state its leases.
  if (unmapped.error().code == ErrorCode::kUnimplemented) {
    return books_.clock.now() >= books_.started + books_.config.grace;
  }
  log_warning("block " + resident.block->id() + ": " + unmapped.error().message);
  return false;
}

void Reaper::check(const std::string& block) {
  Resident* const resident = books_.store.by_block(block);
  if (resident != nullptr && resident->draining() && !resident->removing && unheld(*resident)) {
    start_removing(*resident);
  }
}

void Reaper::check_all() {
  std::vector<std::string> draining;
  for (const auto& [id, resident] : books_.store.all()) {
    if (resident.draining()) draining.push_back(id);
  }
  for (const std::string& block : draining) check(block);
  if (!draining.empty()) arm_timer();
}

void Reaper::take_over_draining() {
  for (const auto& [id, resident] : books_.store.all()) {
    if (resident.draining()) watch(resident);
  }
  check_all();
}

void Reaper::start_removing(Resident& resident) {
  resident.removing = true;
  jobs_.run([os = &books_.os, block = resident.block]() -> Result<void> { return std::move(*block).remove(*os); },
            [this, id = resident.block->id()](const Result<void>& outcome) { removed(id, outcome); });
}

void Reaper::removed(const std::string& block, const Result<void>& outcome) {
  Resident* const resident = books_.store.by_block(block);
  if (!outcome) {
    log_error("block " + block + " cannot be freed: " + outcome.error().message);
    if (resident != nullptr) resident->removing = false;  // the timer tries again
  } else if (resident != nullptr) {
    log_info("freed " + format_size(resident->bytes()) + ": block " + block);
    unwatch(block);
    books_.store.erase(block);
    keeper_.erase(block);
  }
  auto waiting = waiting_.extract(block);
  for (; !waiting.empty(); waiting = waiting_.extract(block)) waiting.mapped()(outcome.has_value());
  if (outcome) tell_gone(block, true);
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
