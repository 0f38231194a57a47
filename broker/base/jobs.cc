#include "broker/base/jobs.h"

#include <system_error>

namespace modelbroker {

Jobs::Jobs(Loop& loop, std::size_t most_threads) : loop_(loop), most_threads_(most_threads) {
  const std::scoped_lock lock(shared_->mutex);
  (void)start_thread();
}

Jobs::~Jobs() {
  if (!threads_.empty()) (void)stop(std::chrono::hours(24 * 365));
}

bool Jobs::stop(std::chrono::milliseconds patience) {
  bool ended = false;
  {
    std::unique_lock lock(shared_->mutex);
    shared_->stopping = true;
    shared_->queue.clear();
    shared_->changed.notify_all();
    // By the system's clock: the thread sanitizer of clang 14 does not know waits by the steady one.
    ended = shared_->idle_changed.wait_until(lock, std::chrono::system_clock::now() + patience,
                                             [this] { return shared_->threads == 0; });
  }
  for (std::thread& thread : threads_) ended ? thread.join() : thread.detach();
  threads_.clear();
  return ended;
}

void Jobs::submit(std::function<void()> job) {
  std::unique_lock lock(shared_->mutex);
  const bool wants_more = shared_->queue.size() >= shared_->idle && threads_.size() < most_threads_;
  // Out of threads: those that there are do it; without any, the loop itself.
  if (wants_more && !start_thread() && threads_.empty()) {
    lock.unlock();
    return job();
  }
  shared_->queue.push_back(std::move(job));
  shared_->changed.notify_one();
}

bool Jobs::has_thread() {
  const std::scoped_lock lock(shared_->mutex);
  return !threads_.empty() || start_thread();
}

bool Jobs::start_thread() {
  try {
    threads_.emplace_back([shared = shared_] { work(*shared); });
  } catch (const std::system_error&) {
    return false;
  }
  ++shared_->threads;
  return true;
}

void Jobs::work(Shared& shared) {
  std::unique_lock lock(shared.mutex);
  while (true) {
    ++shared.idle;
    shared.idle_changed.notify_all();
    shared.changed.wait(lock, [&] { return shared.stopping || !shared.queue.empty(); });
    --shared.idle;
    if (shared.stopping) break;
    const std::function<void()> job = std::move(shared.queue.front());
    shared.queue.pop_front();
    lock.unlock();
    job();
    lock.lock();
  }
  --shared.threads;
  shared.idle_changed.notify_all();
}

void Jobs::drain() {
  std::unique_lock lock(shared_->mutex);
  shared_->idle_changed.wait(lock, [this] { return shared_->queue.empty() && shared_->idle == shared_->threads; });
}

}  // namespace modelbroker
