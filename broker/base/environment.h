// Environment: where the broker runs, and what it counts. Made at the start; the loop's thread only.
#pragma once

#include <cstdint>
#include <utility>

#include "broker/base/clock.h"
#include "broker/base/config.h"
#include "shm/block_format.h"
#include "shm/os.h"

namespace modelbroker {

// Since the start, for cache.status.
struct Counters {
  std::uint64_t hits = 0, misses = 0, loads = 0, evictions = 0;
  std::uint64_t scrubbed_bytes = 0, scrub_errors = 0;
};

struct Environment {
  Environment(Os& os_, const Clock& clock_, Config config_) : os(os_), clock(clock_), config(std::move(config_)) {}

  Os& os;
  const Clock& clock;
  Config config;  // what may change while we run does so at SIGHUP
  BootId boot_id{};
  TimePoint started;
  Counters counters;
};

}  // namespace modelbroker
