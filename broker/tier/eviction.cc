#include "broker/tier/eviction.h"

#include <algorithm>
#include <cmath>
#include <tuple>

namespace modelbroker {

double value_when_used(double age, double seconds_to_load, std::uint64_t bytes) noexcept {
  constexpr double kGibibyte = 1ULL << 30;
  constexpr double kNoise = 1.0;  // seconds that a load may take longer on a busy machine, and nobody minds
  const double gibibytes = static_cast<double>(std::max<std::uint64_t>(bytes, 1)) / kGibibyte;
  const double cost = std::max(1.0, std::max(0.0, seconds_to_load - kNoise) / gibibytes);
  return age + std::exp2(std::round(std::log2(cost)));
}

void Freed::add(const EvictionCandidate& candidate) {
  bytes_ += candidate.bytes;
  for (const auto& shared : candidate.shared) {
    if (++gone_[shared.block] == shared.owners) bytes_ += shared.bytes;
  }
}

void Freed::remove(const EvictionCandidate& candidate) {
  bytes_ -= candidate.bytes;
  for (const auto& shared : candidate.shared) {
    if (gone_[shared.block]-- == shared.owners) bytes_ -= shared.bytes;
  }
}

std::optional<std::vector<std::string>> choose_victims(std::vector<EvictionCandidate> candidates, std::uint64_t needed,
                                                       const std::function<bool(const std::string&)>& can_go) {
  std::ranges::sort(candidates, {}, [](const EvictionCandidate& c) { return std::tie(c.value, c.last_used, c.block); });
  std::vector<EvictionCandidate> chosen;
  Freed freed;
  for (EvictionCandidate& candidate : candidates) {
    if (freed.bytes() >= needed) break;
    if (!can_go(candidate.block)) continue;
    freed.add(candidate);
    chosen.push_back(std::move(candidate));
  }
  if (freed.bytes() < needed) return std::nullopt;
  std::vector<std::string> victims;
  // From the most valuable down: whoever is not needed after all stays.
  for (auto candidate = chosen.rbegin(); candidate != chosen.rend(); ++candidate) {
    freed.remove(*candidate);
    if (freed.bytes() >= needed) continue;
    freed.add(*candidate);
    victims.push_back(std::move(candidate->block));
  }
  return victims;
}

}  // namespace modelbroker
