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
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "broker/base/clock.h"

namespace modelbroker {

// What a block is worth now that it was used.
[[nodiscard]] double value_when_used(double age, double seconds_to_load, std::uint64_t bytes) noexcept;

// Of what goes first.
inline constexpr double kWorthless = -1;

struct EvictionCandidate {
  // Bytes that go with the last of those that have them.
  struct Shared {
    std::string block;
    std::uint64_t bytes = 0;
    int owners = 0;
  };
  std::string block;
  std::uint64_t bytes = 0;  // its alone
  double value = 0;
  TimePoint last_used{};
  std::optional<TimePoint> expires{};  // when its keep_alive is over; nothing: never
  std::vector<Shared> shared{};
};

// What goes if these go, all together.
class Freed {
 public:
  [[nodiscard]] std::uint64_t bytes() const noexcept { return bytes_; }
  void add(const EvictionCandidate& candidate);
  void remove(const EvictionCandidate& candidate);

 private:
  std::uint64_t bytes_ = 0;
  std::map<std::string, int> gone_;  // owners of shared blocks
};

// The least valuable candidates that make `needed` bytes together, without any that is not needed for it. Nothing if
// all together are not enough. `can_go` is asked only of those that would be taken: the kernel may say that somebody
// has one.
[[nodiscard]] std::optional<std::vector<std::string>> choose_victims(
    std::vector<EvictionCandidate> candidates, std::uint64_t needed,
    const std::function<bool(const std::string&)>& can_go);

}  // namespace modelbroker
