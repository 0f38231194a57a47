#include "shm/threads.h"

#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <utility>
#include <vector>

namespace modelbroker {
namespace {

// While it lives, this thread takes no signal, and neither does one that it starts.
class BlockedSignals {
 public:
  BlockedSignals() {
    sigset_t all;
    sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~BlockedSignals() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  BlockedSignals(const BlockedSignals&) = delete;
  BlockedSignals& operator=(const BlockedSignals&) = delete;

 private:
  sigset_t before_{};
};

// The kernel counts a thread a moment longer than join() waits for it.
void wait_until_uncounted(pid_t thread) {
  constexpr int kMostLooks = 200;
  for (int look = 0; look < kMostLooks && ::syscall(SYS_tgkill, ::getpid(), thread, 0) == 0; ++look) {
    std::this_thread::sleep_for(std::chrono::microseconds(50 * (look + 1)));
  }
}

// Threads that run until this ends.
class IdleThreads {
 public:
  IdleThreads() = default;
  ~IdleThreads() {
    {
      const std::lock_guard lock(mutex_);
      over_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
    for (const pid_t number : numbers_) wait_until_uncounted(number);
  }
  IdleThreads(const IdleThreads&) = delete;
  IdleThreads& operator=(const IdleThreads&) = delete;

  // False: there is none left.
  [[nodiscard]] bool start_one() {
    try {
      threads_.push_back(thread_without_signals([this] {
        std::unique_lock lock(mutex_);
        numbers_.push_back(static_cast<pid_t>(::syscall(SYS_gettid)));
        changed_.wait(lock, [this] { return over_; });
      }));
    } catch (const std::system_error&) {
      return false;
    }
    return true;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool over_ = false;           // guarded by mutex_
  std::vector<pid_t> numbers_;  // likewise
  std::vector<std::thread> threads_;
};

bool can_start(std::size_t count) {
  IdleThreads threads;
  for (std::size_t i = 0; i < count; ++i) {
    if (!threads.start_one()) return false;
  }
  return true;
}

}  // namespace

Result<void> threads_left(std::size_t count, std::string_view what) {
  // More than once: threads that have just ended may still be counted.
  for (const std::chrono::milliseconds pause :
       {std::chrono::milliseconds(1), std::chrono::milliseconds(10), std::chrono::milliseconds(0)}) {
    if (can_start(count)) return {};
    std::this_thread::sleep_for(pause);
  }
  return tl::unexpected(no_thread_left(what));
}

Error no_thread_left(std::string_view what) {
  return {ErrorCode::kResourceExhausted,
          std::string(what) +
              ": no thread can be started: end some, or raise the limit: 'ulimit -u' for this user's processes and "
              "threads, TasksMax= for a systemd unit, pids.max for a container (docker run --pids-limit)"};
}

std::thread thread_without_signals(std::function<void()> work) {
  const BlockedSignals blocked;
  return std::thread(std::move(work));
}

}  // namespace modelbroker
