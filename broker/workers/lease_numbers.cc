#include "broker/workers/lease_numbers.h"

#include <iterator>

namespace modelbroker {

bool LeaseNumbers::use(std::uint64_t number) {
  const auto above = ranges_.upper_bound(number);
  const auto below = above == ranges_.begin() ? ranges_.end() : std::prev(above);
  if (below != ranges_.end() && number <= below->second) return false;
  std::uint64_t last = number;
  if (above != ranges_.end() && above->first == number + 1) {
    last = above->second;
    ranges_.erase(above);
  }
  if (below != ranges_.end() && below->second + 1 == number) {
    below->second = last;
  } else {
    ranges_.emplace(number, last);
  }
  if (ranges_.size() > kMostGaps + 1) {
    const auto second = std::next(ranges_.begin());
    ranges_.begin()->second = second->second;
    ranges_.erase(second);
  }
  return true;
}

std::uint64_t LeaseNumbers::use_next() {
  const std::uint64_t next = ranges_.empty() ? 1 : ranges_.rbegin()->second + 1;
  use(next);
  return next;
}

}  // namespace modelbroker
