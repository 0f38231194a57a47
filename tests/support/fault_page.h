// FaultPage: what a test tells `modelbroker_faulty` and what it learns from it, in a file that both map.
//
// The test makes the file (kBytes of zeros) and names it in MODELBROKER_FAULTS. It writes its wishes, then `armed`;
// the broker counts in the page. So a test arms a running broker between two requests, and that costs no call.
// tests/support/faults.py has the same layout. Threads: any, on both sides; wishes change only while not armed.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace modelbroker::testing {

struct FaultPage {
  static constexpr std::size_t kBytes = 8192;

  // Wishes.
  std::atomic<std::uint64_t> armed;         // 0: nothing happens and nothing is counted
  std::atomic<std::uint64_t> fail_at;       // which counted call fails; 0: none
  std::atomic<std::uint64_t> error_number;  // with what
  std::atomic<std::uint64_t> persistent;    // 1: all later ones too
  std::atomic<std::uint64_t> crash_at;      // at which passing of crash_point the broker kills itself; 0: never
  // Counts.
  std::atomic<std::uint64_t> calls;   // system calls, of those that `only` names
  std::atomic<std::uint64_t> failed;  // of them
  std::atomic<std::uint64_t> passed;  // of crash_point

  std::array<char, 64> crash_point;     // wish: a name of kCrashPoints
  std::array<char, 448> only;           // wish: ",open,fstat,"; empty: every call
  std::array<char, 64> first_failed;    // told: the call that failed first
  std::array<char, 4096> points;        // told at start: kCrashPoints, one a line
  std::atomic<std::uint64_t> clock_ns;  // the broker's time, armed or not; 0: the real one
};
static_assert(sizeof(FaultPage) <= FaultPage::kBytes);
static_assert(offsetof(FaultPage, crash_point) == 64 && offsetof(FaultPage, points) == 640 &&
              offsetof(FaultPage, clock_ns) == 4736);

}  // namespace modelbroker::testing
