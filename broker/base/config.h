// What `serve` was told: every setting of a broker, with its default.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "broker/base/clock.h"
#include "shm/error.h"

namespace modelbroker {

struct Config {
  std::string run_directory;               // sockets, lock and state database
  std::string ram_directory = "/dev/shm";  // blocks
  std::string instance = "default";
  std::optional<std::uint64_t> ram_budget;  // bytes; nothing: from what the machine has
  bool keep_on_stop = false;                // leave blocks in RAM at a clean stop
  bool huge_pages = true;
  bool any_file_system = false;               // allow a ram_directory that is no tmpfs
  unsigned load_threads = 0;                  // readers a load; 0: one a usable core, more for a cold file
  std::string disabled_features;              // of the kernel, by name: to run on the second way
  Duration grace = std::chrono::seconds(15);  // after a start: how long leases may be restated
  Duration hung = std::chrono::seconds(15);   // silence of a peer that has no pid
  std::string group;                          // whose members may list, attach and load; empty: nobody but our uid
  std::vector<std::string> model_folders;     // absolute; from which members of the group may load
  Duration keep_alive = Duration(-1);         // how long an unused model stays; negative: until its room is needed
  std::uint64_t scrub_rate = 64ULL << 20;     // bytes a second that are hashed again; 0: none
  Duration scrub_interval = std::chrono::hours(24);  // from a block's check to its next
  std::uint64_t memory_reserve = 512ULL << 20;       // of MemAvailable and of the control group, never used by a load
  std::string log_level = "info";                    // debug, info, warning, error
  std::string log_format = "text";                   // text, json
};

// The configuration read again: `config` has what may change while the broker runs; the rest is as it was.
struct Reloaded {
  Config config;
  std::vector<std::string> changed, need_restart;  // names of settings
};
// Runs on a job thread.
using Reload = std::function<Result<Reloaded>(const Config& running)>;

}  // namespace modelbroker
