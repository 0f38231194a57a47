// Budget: how many bytes the RAM tier may hold, and the refusal with numbers.
//
// reserved (admitted, not yet made) + made + draining never pass the limit.
// Threads: the broker's only. Failure: resource_exhausted with every number that helps to decide.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "shm/error.h"
#include "shm/os.h"

namespace modelbroker {

// What the machine has left, read when asked.
struct MemoryFacts {
  std::uint64_t available = 0;               // MemAvailable of /proc/meminfo
  std::uint64_t file_system_free = 0;        // of the RAM directory
  std::optional<std::uint64_t> cgroup_left;  // memory.max - memory.current, where there is a limit
};
// `proc_root` and `cgroup_root`: "/proc" and "/sys/fs/cgroup", other folders in tests.
[[nodiscard]] Result<MemoryFacts> read_memory_facts(Os& os, const std::string& directory,
                                                    const std::string& proc_root = "/proc",
                                                    const std::string& cgroup_root = "/sys/fs/cgroup");
// min(70 % of available, 90 % of the file system's free, cgroup's rest - 512 MiB), each plus `held`.
[[nodiscard]] std::uint64_t default_limit(const MemoryFacts& facts, std::uint64_t held) noexcept;

class Budget {
 public:
  explicit Budget(std::uint64_t limit) noexcept : limit_(limit) {}

  struct Use {  // what the store counts
    std::uint64_t made = 0, draining = 0, pinned = 0, leased = 0;
  };
  // Reserves `bytes`, or refuses and changes nothing. `what` names the file.
  [[nodiscard]] Result<void> reserve(std::uint64_t bytes, const Use& use, const std::string& what);
  void unreserve(std::uint64_t bytes) noexcept;

  void set_limit(std::uint64_t limit) noexcept { limit_ = limit; }
  [[nodiscard]] std::uint64_t limit() const noexcept { return limit_; }
  [[nodiscard]] std::uint64_t reserved() const noexcept { return reserved_; }

 private:
  std::uint64_t limit_;
  std::uint64_t reserved_ = 0;
};

// "4GiB", "1.5 GB", "1048576": bytes. GiB is binary, GB decimal. invalid_argument says what is allowed.
[[nodiscard]] Result<std::uint64_t> parse_size(std::string_view text);
// "2.6 GiB": for people.
[[nodiscard]] std::string format_size(std::uint64_t bytes);

}  // namespace modelbroker
