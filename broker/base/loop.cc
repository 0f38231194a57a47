#include "broker/base/loop.h"

#include <poll.h>
#include <sys/epoll.h>

#include <algorithm>
#include <array>
#include <cerrno>

namespace modelbroker {
namespace {
// A turn is bounded, so that neither a flood of messages nor of descriptors starves the other.
constexpr int kMessagesPerTurn = 64;
constexpr std::size_t kDescriptorsPerTurn = 64;
constexpr WatchId kWakeKey = 0;
constexpr long kLongestWait = 3'600'000;
}  // namespace

Result<std::unique_ptr<Loop>> Loop::create(Os& os, const Clock& clock) {
  std::unique_ptr<Loop> loop(new Loop(os, clock));
  auto epoll = os.epoll_create();
  if (!epoll) return fail_errno(epoll.error().number, "creating the event loop");
  loop->epoll_ = std::move(*epoll);
  auto wake = os.event_fd();
  if (!wake) return fail_errno(wake.error().number, "creating the event loop");
  loop->wake_ = std::move(*wake);
  if (auto added = os.epoll_add(loop->epoll_.get(), loop->wake_.get(), EPOLLIN, kWakeKey); !added) {
    return fail_errno(added.error().number, "creating the event loop");
  }
  return loop;
}

Result<WatchId> Loop::watch(int fd, std::uint32_t events, FdHandler handler) {
  const WatchId id = next_id_++;
  auto added = os_.epoll_add(epoll_.get(), fd, events, id);
  if (!added && added.error().number == EEXIST) {  // an unwatch() that failed has left it there
    (void)os_.epoll_remove(epoll_.get(), fd);
    added = os_.epoll_add(epoll_.get(), fd, events, id);
  }
  if (!added) {
    return fail_errno(added.error().number, "watching a descriptor");
  }
  watches_.emplace(id, Watch{fd, std::make_shared<FdHandler>(std::move(handler))});
  return id;
}

void Loop::unwatch(WatchId id) {
  const auto found = watches_.find(id);
  if (found == watches_.end()) return;
  (void)os_.epoll_remove(epoll_.get(), found->second.fd);
  watches_.erase(found);
}

TimerId Loop::after(Duration delay, Handler handler) {
  const TimerId id(clock_.now() + delay, next_id_++);
  timers_.emplace(id, std::move(handler));
  return id;
}

void Loop::cancel(const TimerId& timer) { timers_.erase(timer); }

void Loop::post(Handler handler) {
  {
    const std::scoped_lock lock(mutex_);
    posted_.push_back(std::move(handler));
  }
  os_.event_fd_signal(wake_.get());
}

void Loop::set_messages(int zmq_fd, std::function<bool()> receive_one) {
  messages_ = zmq_fd;
  receive_one_ = std::move(receive_one);
}

int Loop::wait_ms() const {
  if (timers_.empty()) return -1;
  const Duration left = timers_.begin()->first.first - clock_.now();
  // Rounded up: a timer must have come due when we look again.
  return static_cast<int>(
      std::clamp<long>(std::chrono::ceil<std::chrono::milliseconds>(left).count(), 0, kLongestWait));
}

void Loop::run_timers() {
  const TimePoint now = clock_.now();
  while (!timers_.empty() && timers_.begin()->first.first <= now) {
    const Handler handler = std::move(timers_.begin()->second);
    timers_.erase(timers_.begin());
    handler();
  }
}

void Loop::run_posted() {
  std::vector<Handler> posted;
  {
    const std::scoped_lock lock(mutex_);
    posted.swap(posted_);
  }
  for (const Handler& handler : posted) handler();
}

void Loop::run_descriptors() {
  const auto ready = os_.epoll_poll(epoll_.get(), kDescriptorsPerTurn);
  if (!ready) return;
  for (const Os::Ready& event : *ready) {
    if (event.key == kWakeKey) {
      os_.event_fd_drain(wake_.get());
      continue;
    }
    // An earlier handler of this turn may have unwatched it.
    const auto found = watches_.find(event.key);
    if (found == watches_.end()) continue;
    const std::shared_ptr<FdHandler> handler = found->second.handler;
    (*handler)(event.events);
  }
}

// False once a receive has found nothing: only then will the descriptor tell of the next message.
bool Loop::receive_some() {
  for (int i = 0; i < kMessagesPerTurn && messages_ >= 0; ++i) {
    if (!receive_one_()) return false;
  }
  return messages_ >= 0;
}

Result<void> Loop::run() {
  while (!stopping_) MODELBROKER_TRY(turn());
  return {};
}

Result<void> Loop::turn() {
  std::array<pollfd, 2> items{{{epoll_.get(), POLLIN, 0}, {messages_, POLLIN, 0}}};
  if (::poll(items.data(), items.size(), more_messages_ ? 0 : wait_ms()) < 0) {
    if (errno != EINTR) return fail_errno(errno, "waiting for events");
    items[0].revents = 0;
  }
  run_timers();
  if (items[0].revents != 0) run_descriptors();
  run_posted();
  // Whatever woke us: what was sent meanwhile may have used up the socket's signal.
  more_messages_ = receive_some();
  return {};
}

void Loop::discard() {
  std::vector<Handler> posted;
  {
    const std::scoped_lock lock(mutex_);
    posted.swap(posted_);
  }
  const auto timers = std::exchange(timers_, {});
}

void Loop::stop() {
  post([this] { stopping_ = true; });
}

}  // namespace modelbroker
