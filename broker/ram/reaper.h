// Reaper: withdraws blocks that no model has, and frees them when, by the kernel's word, nobody has them any more.
//
// Asked when a lease ends, when inotify says that a file was closed, and by a slow timer behind both.
// Threads: the loop's; the unlink runs as a job.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "broker/base/environment.h"
#include "broker/base/event_sink.h"
#include "broker/base/jobs.h"
#include "broker/ram/ram_store.h"
#include "broker/workers/leases.h"

namespace modelbroker {

class Reaper {
 public:
  Reaper(Environment& env, RamStore& ram, const LeaseBook& leases, Loop& loop, Jobs& jobs, EventSink& events);
  Reaper(const Reaper&) = delete;
  Reaper& operator=(const Reaper&) = delete;
  ~Reaper();

  // Renames a block that no model will have, so that nobody finds it any more. Nothing has changed if that fails.
  Result<void> withdraw(RamBlock& block);
  // Frees a withdrawn block as soon as nobody has it. False: somebody has it now. `freed` is told once, unless somebody
  // has it: whether its file could be removed.
  bool free(RamBlock& block, std::function<void(bool freed)> freed = {});
  // Both, of a block that no model has: tried again until it can be withdrawn.
  void drain(RamBlock& block);
  // The same, if no model has it, no answer hands it out, and it does not drain already.
  void drain_unwanted(RamBlock& block);
  // By our leases and by the kernel's word.
  [[nodiscard]] bool nobody_has(const RamBlock& block) const;
  // The file of a load that failed could not be removed: tried again until it can be, and counted until then.
  void remove_later(Budget::Reservation reservation, std::uint64_t generation);
  // Called with each block that begins to drain on its own, or is gone: it is to be written down.
  void on_changed(std::function<void(const std::string& block)> changed) { changed_ = std::move(changed); }
  // Called whenever memory became free.
  void on_freed(std::function<void()> freed) { freed_ = std::move(freed); }
  // Frees the block if it drains and nobody has it.
  void check(const std::string& block);
  void check_all();
  // The same for blocks that an earlier broker withdrew; once, after adoption.
  void take_over_draining();
  // Tells when the block's bytes are free (at once if it is not there), or that it was revived.
  void when_gone(const std::string& block, std::function<void(bool gone)> told);
  // A draining block that was revived.
  void revived(const std::string& block);

 private:
  void remove_orphans();
  void start_removing(RamBlock& block);
  void removed(const std::string& block, std::uint64_t bytes, const Result<void>& outcome);
  void watch(const RamBlock& block);
  void unwatch(const std::string& block);
  void arm_timer();
  void tell_gone(const std::string& block, bool gone);

  Environment& env_;
  RamStore& ram_;
  const LeaseBook& leases_;
  Loop& loop_;
  Jobs& jobs_;
  EventSink& events_;
  Fd inotify_;
  WatchId inotify_watch_ = 0;
  std::map<int, std::string> block_of_watch_;
  std::multimap<std::string, std::function<void(bool freed)>> waiting_;  // by block
  std::multimap<std::string, std::function<void(bool gone)>> gone_;
  std::function<void(const std::string& block)> changed_ = [](const std::string&) {};
  std::function<void()> freed_ = [] {};
  std::map<std::uint64_t, Budget::Reservation> orphans_;  // by generation
  bool timer_armed_ = false;
};

}  // namespace modelbroker
