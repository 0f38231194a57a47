// Tidier: a process that outlives `modelbroker bench` for a moment, and removes what that leaves however it ends.
//
// It waits in a session of its own, so that what is sent to bench, its terminal or its process group passes it by. The
// broker and the workers of bench die with it. Only if the tidier is killed as well something stays (a control group
// that is killed as a whole): its memory until the next bench tidies up, its folders in TMPDIR for good.
// Threads: one; start it before any other. Failure: typed error where no process can be made.
#pragma once

#include <sys/types.h>

#include <string>
#include <utility>
#include <vector>

#include "shm/error.h"
#include "shm/fd.h"
#include "shm/os.h"

namespace modelbroker::cli {

// Where the broker of a bench has its blocks, and as which instance.
inline constexpr const char* kBenchRam = "/dev/shm";
[[nodiscard]] std::string bench_instance(pid_t bench);

class Tidier {
 public:
  // For this process: `folders`, and its instance's files.
  [[nodiscard]] static Result<Tidier> start(const std::vector<std::string>& folders);
  Tidier(Tidier&& other) noexcept : pid_(std::exchange(other.pid_, -1)), alive_(std::move(other.alive_)) {}
  Tidier& operator=(Tidier&&) = delete;
  ~Tidier();  // returns when all is tidy

 private:
  Tidier(pid_t pid, Fd alive) noexcept : pid_(pid), alive_(std::move(alive)) {}
  pid_t pid_;
  Fd alive_;  // closed by our end, whatever it is
};

// Frees what benches left whose tidier was killed with them.
void tidy_up_after_dead_benches(Os& os);

}  // namespace modelbroker::cli
