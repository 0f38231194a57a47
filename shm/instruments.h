// Test seams: the places where a test's program steps into a broker.
//
// The shipped program has empty versions of both functions (instruments.cc). `modelbroker_faulty`, built with the
// tests and never installed, is the same program with others in their place (tests/support/instruments_faulty.cc):
// it dies at a named point, or lets a chosen system call fail. Threads: any. Failure: none.
#pragma once

#include <algorithm>
#include <array>
#include <memory>
#include <string_view>

#include "shm/os.h"

namespace modelbroker {

// Every point at which a test kills the broker. tests/crash/named_points_test.py has a way to each.
inline constexpr auto kCrashPoints = std::to_array<std::string_view>({
    "load.file_made",          // the `.tmp` exists and is empty
    "load.pages_made",         // its first pages exist
    "load.chunk_read",         // a chunk of it holds the source's bytes
    "load.sealed",             // whole, hashed, read-only, still `.tmp`
    "publish.before_rename",   // no writing description is left
    "publish.after_rename",    // it has its name; nobody was told
    "rename.linked",           // of a rename without renameat2: the file bears both names
    "load.in_books",           // a resident of the books, not yet of the state database
    "load.written",            // in the state database; the asker was not answered
    "state_db.tables_made",    // a new database without its version
    "state_db.before_commit",  // within a transaction
    "state_db.after_commit",
    "drain.before_rename",
    "drain.after_rename",  // bears `.drain`; the state database still has its names
    "drain.before_unlink",
    "drain.after_unlink",  // gone; books and database still have it
    "revive.before_rename",
    "revive.after_rename",    // has its name back; the state database does not know any
    "adopt.locked",           // of the next broker's start: both locks are taken
    "adopt.garbage_removed",  // a `.tmp` was removed
    "adopt.block_adopted",    // one block of several
    "adopt.before_sockets",   // all is adopted; the sockets are still the dead broker's
    "stop.sockets_gone",      // of a clean stop: nobody can connect any more
    "stop.block_removed",     // one block of several
    "stop.before_flush",      // all blocks are removed; the state database may not know
    "stop.flushed",
});

// A name of the list above; any other does not compile.
class CrashPoint {
 public:
  consteval CrashPoint(const char* name) : name_(name) {  // implicit: crash_point("load.sealed")
    if (std::find(kCrashPoints.begin(), kCrashPoints.end(), name_) == kCrashPoints.end())
      throw "add it to kCrashPoints";
  }
  [[nodiscard]] std::string_view name() const noexcept { return name_; }

 private:
  std::string_view name_;
};

// Passed at the named place of the code.
void crash_point(CrashPoint point) noexcept;

// Around the Os that `serve` works with.
[[nodiscard]] std::unique_ptr<Os> instrument(std::unique_ptr<Os> os);

}  // namespace modelbroker
