// A step of a flight: work on a job thread of any user who wants it, then a method of BlockLoads on the loop's.
//
// Threads: run() is the loop's. Failure: the work's own.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <type_traits>
#include <utility>

#include "broker/ram/block_loads.h"

namespace modelbroker {

// Whoever of those who wait has a thread free first does it: all threads of one of them may hang. What is left of it
// with the others, who find it taken, keeps nothing of the flight.
template <class Work, class Then>
void BlockLoads::run(const FlightPtr& flight, Work work, Then then) {
  using Found = std::invoke_result_t<Work&, Flight&>;
  struct Step {
    std::atomic<bool> is_taken = false;
    std::optional<Work> work;
  };
  const auto step = std::make_shared<Step>();
  step->work.emplace(std::move(work));
  flight->offer = [this, weak = std::weak_ptr(flight), step, then](uid_t uid) {
    jobs_of(uid).run(
        [weak, step]() -> std::optional<Found> {
          if (step->is_taken.exchange(true)) return std::nullopt;
          const FlightPtr taken = weak.lock();  // not before: the last hold of it is the loop's
          if (!taken) return std::nullopt;
          std::optional<Found> outcome = (*step->work)(*taken);
          step->work.reset();
          return outcome;
        },
        [this, weak, then](std::optional<Found> outcome) {
          const FlightPtr ready = weak.lock();
          if (!ready || !outcome) return;
          ready->offer = {};
          std::invoke(then, this, ready, std::move(*outcome));
        });
  };
  std::set<uid_t> uids;
  for (const BatchPtr& batch : flight->batches) uids.insert(batch->ask.uid);
  for (const uid_t uid : uids) flight->offer(uid);
}

}  // namespace modelbroker
