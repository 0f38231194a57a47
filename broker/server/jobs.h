// Jobs: slow work off the broker's thread; results come back to it as events.
//
// Threads: run() from the loop's thread; `work` runs on a job thread, `then` on the loop's. A job must
// not throw. Threads are started as needed, up to a limit; with a limit of one, jobs run in order.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "broker/server/loop.h"

namespace modelbroker {

class Jobs {
 public:
  Jobs(Loop& loop, std::size_t most_threads) : loop_(loop), most_threads_(most_threads) {}
  Jobs(const Jobs&) = delete;
  Jobs& operator=(const Jobs&) = delete;
  ~Jobs();  // waits for what runs; what has not begun is dropped

  template <class Work, class Then>
  void run(Work work, Then then) {
    // Results and files are move-only; std::function is not: hence the shared holder.
    auto job = std::make_shared<std::pair<Work, Then>>(std::move(work), std::move(then));
    submit([this, job] {
      auto result = std::make_shared<decltype(job->first())>(job->first());
      loop_.post([job, result] { job->second(std::move(*result)); });
    });
  }

  // Waits until all that was submitted has run (its `then` may still be on the loop's way).
  void drain();

 private:
  void submit(std::function<void()> job);
  void work();

  Loop& loop_;
  const std::size_t most_threads_;
  std::mutex mutex_;
  std::condition_variable changed_, idle_changed_;
  // Guarded by mutex_:
  std::deque<std::function<void()>> queue_;
  std::vector<std::thread> threads_;
  std::size_t idle_ = 0;
  bool stopping_ = false;
};

}  // namespace modelbroker
