// Books: all that the broker knows, in one place. Owned by the loop's thread; no locks, no I/O.
#pragma once

#include <algorithm>
#include <cstdint>

#include "broker/clock.h"
#include "broker/ram/budget.h"
#include "broker/ram/store.h"
#include "broker/server/config.h"
#include "broker/workers/leases.h"
#include "broker/workers/sessions.h"
#include "shm/block.h"

namespace modelbroker {

struct Books {
  Books(Os& os_, const Clock& clock_, Config config_, BlockDirectory directory_)
      : os(os_), clock(clock_), config(std::move(config_)), directory(std::move(directory_)), store(os_) {}

  Os& os;
  const Clock& clock;
  Config config;  // what may change while we run does so at SIGHUP
  const BlockDirectory directory;
  BootId boot_id{};
  TimePoint started;
  RamStore store;
  LeaseBook leases;
  Sessions sessions;
  Budget budget{0};
  std::uint64_t hits = 0, misses = 0, loads = 0;
  std::uint64_t highest_generation = 0;

  // Never the same twice, not even over a restart: CLOCK_BOOTTIME only grows while blocks live.
  [[nodiscard]] std::uint64_t new_generation() {
    return highest_generation = std::max(os.boottime_ns(), highest_generation + 1);
  }
  [[nodiscard]] Budget::Use use() const {
    const RamStore::Totals totals = store.totals();
    return {totals.made, totals.draining, totals.pinned, leased_bytes()};
  }
  [[nodiscard]] std::uint64_t leased_bytes() const {
    std::uint64_t bytes = 0;
    for (const auto& [id, resident] : store.all()) {
      if (leases.count(id) > 0) bytes += resident.bytes();
    }
    return bytes;
  }
};

}  // namespace modelbroker
