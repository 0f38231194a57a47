// LeaseNumbers: which lease numbers a session has used, so that none is used twice.
//
// Ranges: who counts upwards costs one. Threads: the broker's only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>

namespace modelbroker {

class LeaseNumbers {
 public:
  static constexpr std::uint64_t kHighest = 1ULL << 62;  // far from where the next number would wrap
  // Below it in use, and not used themselves. Of one more, the lowest counts as used: threads that take numbers from
  // one counter leave no more gaps than they are.
  static constexpr std::size_t kMostGaps = 1024;

  // False if the number was used before.
  bool use(std::uint64_t number);
  // Uses the number above all that were used.
  std::uint64_t use_next();

 private:
  std::map<std::uint64_t, std::uint64_t> ranges_;  // first to last; none touches another
};

}  // namespace modelbroker
