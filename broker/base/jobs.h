// Jobs: slow work off the broker's thread; results come back to it as events.
//
// Threads: run() from the loop's thread; `work` runs on a job thread, `then` on the loop's. A job must
// not throw. Threads are started as needed, up to a limit; with a limit of one, jobs run in order. A job that hangs in
// the kernel holds up its own Jobs only, and stop() waits for it only so long.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "broker/base/loop.h"

namespace modelbroker {

class Jobs {
 public:
  // With one thread from the start: where no more can be had, it does all.
  Jobs(Loop& loop, std::size_t most_threads);
  Jobs(const Jobs&) = delete;
  Jobs& operator=(const Jobs&) = delete;
  ~Jobs();  // waits for what runs, unless stop() gave up on it; what has not begun is dropped

  // The same, for so long: false if something still runs. Its thread goes on, so the process must end without
  // destroying what that uses.
  [[nodiscard]] bool stop(std::chrono::milliseconds patience);

  template <class Work, class Then>
  void run(Work work, Then then) {
    // Results and files are move-only; std::function is not: hence the shared holder. What `work` holds is let go
    // on the job thread before the loop hears of it, and what `then` holds (replies among it) on the loop's.
    auto job = std::make_shared<Job<Work, Then>>(std::move(work), std::move(then));
    submit([this, job] {
      auto result = std::make_shared<decltype((*job->work)())>((*job->work)());
      job->work.reset();
      loop_.post([job, result] {
        Then finish = std::move(*job->then);
        job->then.reset();
        finish(std::move(*result));
      });
    });
  }

  // Whether there is a thread, or one can be started: without, a job would run on the loop's.
  [[nodiscard]] bool has_thread();

  // Waits until all that was submitted has run (its `then` may still be on the loop's way).
  void drain();

 private:
  template <class Work, class Then>
  struct Job {
    Job(Work work_, Then then_) : work(std::move(work_)), then(std::move(then_)) {}
    std::optional<Work> work;
    std::optional<Then> then;
  };
  // What the threads share: it outlives us where one of them hangs.
  struct Shared {
    std::mutex mutex;
    std::condition_variable changed, idle_changed;
    // Guarded by mutex:
    std::deque<std::function<void()>> queue;
    std::size_t threads = 0, idle = 0;
    bool stopping = false;
  };
  void submit(std::function<void()> job);
  [[nodiscard]] bool start_thread();  // with the mutex
  static void work(Shared& shared);

  Loop& loop_;
  const std::size_t most_threads_;
  const std::shared_ptr<Shared> shared_ = std::make_shared<Shared>();
  std::vector<std::thread> threads_;
};

}  // namespace modelbroker
