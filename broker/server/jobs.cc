#include "broker/server/jobs.h"

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
  const std::scoped_lock lock(mutex_);
  queue_.push_back(std::move(job));
  if (queue_.size() > idle_ && threads_.size() < most_threads_) {
    threads_.emplace_back([this] { work(); });
  }
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
