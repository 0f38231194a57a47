#include "broker/server/jobs.h"

#include <system_error>

namespace modelbroker {

Jobs::~Jobs() {
  {
    const std::scoped_lock lock(mutex_);
    stopping_ = true;
    queue_.clear();
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void Jobs::submit(std::function<void()> job) {
  std::unique_lock lock(mutex_);
  if (queue_.size() >= idle_ && threads_.size() < most_threads_) {
    try {
      threads_.emplace_back([this] { work(); });
    } catch (const std::system_error&) {
      // Out of threads: those that there are do it; without any, the loop itself.
      if (threads_.empty()) {
        lock.unlock();
        return job();
      }
    }
  }
  queue_.push_back(std::move(job));
  changed_.notify_one();
}

void Jobs::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    ++idle_;
    idle_changed_.notify_all();
    changed_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
    --idle_;
    if (stopping_) return;
    const std::function<void()> job = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    job();
    lock.lock();
  }
}

void Jobs::drain() {
  std::unique_lock lock(mutex_);
  idle_changed_.wait(lock, [this] { return queue_.empty() && idle_ == threads_.size(); });
}

}  // namespace modelbroker
