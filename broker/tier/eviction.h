// Eviction: which blocks go when room is wanted.
//
// GreedyDual-Size (Cao and Irani, "Cost-Aware WWW Proxy Caching Algorithms", USITS 1997): each block has a value,
// age + seconds to reload / size; the age of the cache rises to the value of what was evicted last. With equal costs
// it is least recently used; what is slow to read again for its size stays longer. Costs are rounded to powers of two,
// and all that comes at 1 GiB a second, give or take a second, costs the same: else the noise of measured loads would
// decide among equals.
// Threads: the broker's only.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "broker/base/clock.h"

namespace modelbroker {

// What a block is worth now that it was used.
[[nodiscard]] double value_when_used(double age, double seconds_to_load, std::uint64_t bytes) noexcept;

struct EvictionCandidate {
  std::string block;
  std::uint64_t bytes = 0;
  double value = 0;
  TimePoint last_used;
  std::optional<TimePoint> expires{};  // when its keep_alive is over; nothing: never
};

// The least valuable candidates that make `needed` bytes together, without any that is not needed for it. Nothing if
// all together are not enough. `can_go` is asked only of those that would be taken: the kernel may say that somebody
// has one.
[[nodiscard]] std::optional<std::vector<std::string>> choose_victims(
    std::vector<EvictionCandidate> candidates, std::uint64_t needed,
    const std::function<bool(const std::string&)>& can_go);

}  // namespace modelbroker
