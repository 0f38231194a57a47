#include "cpp_client/link.h"

#include <poll.h>
#include <unistd.h>

#include <set>
#include <system_error>

#include "cpp_client/find_broker.h"
#include "shm/threads.h"

namespace modelbroker::client {
namespace {

constexpr Timeout kPatience{30'000};  // how long a call without a timeout waits for a broker that is gone
constexpr Timeout kDetachTimeout{1000};
constexpr Timeout kTellAgain{1000};
constexpr Timeout kForever{60'000};
// A broker that comes back soon is met soon; one that stays away costs little.
constexpr Timeout kBackoffFirst{20};
constexpr Timeout kBackoffSoon{100};
constexpr Timeout kBackoffMost{500};
constexpr int kSoonTries = 100;
constexpr std::size_t kRestatedAtOnce = 1000;  // far below the limits of one message
constexpr std::size_t kMostIdle = 16;

}  // namespace

Result<std::shared_ptr<Link>> Link::make(Os& os, wire::Endpoint endpoint) {
  auto wake = os.event_fd();
  if (!wake) return fail_errno(wake.error().number, "connecting to " + endpoint.broker());
  MODELBROKER_TRY(descriptors_left(os, kForAContext));
  MODELBROKER_TRY(threads_left(kThreadsOfAContext + 1, "connecting to " + endpoint.broker()));  // and the keeper
  const auto destroy = [](Link* link) {
    if (link->pid_ == ::getpid()) delete link;
  };
  try {
    std::shared_ptr<Link> link(new Link(os, std::move(endpoint), std::move(*wake)), destroy);
    // libzmq begins its threads with the first socket: now, while it has what it needs.
    (void)zmq::socket_t(link->context_, zmq::socket_type::dealer);
    return link;
  } catch (const std::system_error&) {
    return tl::unexpected(no_thread_left("a connection to the broker"));
  } catch (const zmq::error_t& error) {
    return fail(ErrorCode::kResourceExhausted, std::string("connecting to the broker: ") + error.what());
  }
}

Link::Link(Os& os, wire::Endpoint endpoint, Fd wake)
    : os_(os), endpoint_(std::move(endpoint)), pid_(::getpid()), wake_(std::move(wake)) {
  keeper_ = thread_without_signals([this] { keep(); });
}

Link::~Link() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    if (session_) session_->close();
  }
  os_.event_fd_signal(wake_.get());
  keeper_.join();
}

std::string Link::next_id() { return prefix_ + "-" + std::to_string(next_request_++); }

// ---- calls

Result<wire::Reply> Link::exchange(const Session& session, std::string_view id, std::string_view type,
                                   const Channel::Encode& encode, const Deadline& deadline) {
  std::optional<Channel> channel;
  std::uint64_t epoch = 0;
  {
    const std::lock_guard lock(mutex_);
    epoch = epoch_;
    if (!idle_.empty()) {
      channel = std::move(idle_.back());
      idle_.pop_back();
    }
  }
  if (!channel) {
    MODELBROKER_ASSIGN(channel, Channel::connect(os_, context_, endpoint_.broker()));
  }
  auto reply = channel->ask(encode, id, type, deadline, session);
  if (!channel->spoilt()) {
    const std::lock_guard lock(mutex_);
    if (epoch == epoch_ && idle_.size() < kMostIdle) idle_.push_back(std::move(*channel));
  }
  return reply;
}

Result<Link::Granted> Link::attach(wire::Attach data, const Deadline& deadline, const SourceFiles* sources) {
  settle(deadline);
  return with_session<Granted>(deadline, [&](const SharedSession& session) -> Result<Granted> {
    MODELBROKER_TRY(offer(data, sources, *session, deadline));
    data.lease = next_lease_++;
    auto reply = ask<wire::AttachReply>(*session, next_id(), "model.attach", data, deadline);
    if (!reply) {
      if (is_unanswered(reply.error())) drop(data.lease);  // it may be granted yet
      return tl::unexpected(std::move(reply).error());
    }
    if (reply->lease != data.lease) {
      drop(reply->lease);
      return fail(ErrorCode::kUnimplemented,
                  "the broker is older than this client, and numbers leases itself: restart it with this version");
    }
    return hold(std::move(*reply), session);
  });
}

Result<Link::Granted> Link::hold(wire::AttachReply reply, const SharedSession& session) {
  wire::HeldLease held{.lease = reply.lease, .model = reply.model, .blocks = {}};
  for (const wire::BlockGrant& block : reply.blocks) held.blocks.push_back(block.block);
  const std::uint64_t number = reply.lease;
  {
    const std::lock_guard lock(mutex_);
    if (session_ != session) return tl::unexpected(lost("the session has ended, and the lease with it"));
    held_.emplace(number, std::move(held));
  }
  return Granted{std::move(reply), std::make_shared<const HeldLease>(shared_from_this(), number)};
}

Result<Fd> Link::open_block(const std::string& block, const Deadline& deadline) {
  return with_session<Fd>(deadline, [&](const SharedSession& session) { return session->open_block(block, deadline); });
}

// ---- the session

Link::SharedSession Link::current() const {
  const std::lock_guard lock(mutex_);
  return session_;
}

Result<Link::SharedSession> Link::session_for(const Deadline& deadline) {
  const Deadline patience = deadline.at_most(kPatience);
  Timeout backoff = kBackoffFirst;
  while (true) {
    if (auto session = current()) return session;
    const auto opened = open(patience);
    if (opened) continue;
    if (!is_lost(opened.error())) return tl::unexpected(opened.error());
    if (patience.passed()) {
      Error error = no_broker({endpoint_});
      error.message += " (" + opened.error().message + ")";
      return tl::unexpected(std::move(error));
    }
    std::this_thread::sleep_for(patience.left(backoff));
    backoff = std::min(2 * backoff, kBackoffMost);
  }
}

Result<void> Link::open(const Deadline& deadline) {
  const std::unique_lock renewing(renewing_, deadline.left(kPatience));
  if (!renewing) return tl::unexpected(lost("another thread is still connecting"));
  return current() ? Result<void>() : open_session(deadline);
}

Result<void> Link::open_session(const Deadline& deadline) {
  MODELBROKER_ASSIGN(SharedSession session, Session::open(os_, endpoint_, deadline));
  Leases held;
  {
    const std::lock_guard lock(mutex_);  // none is added meanwhile: attach() wants a session
    held = held_;
    dropped_.clear();  // they ended with the session before; what is dropped from here on may be stated
  }
  MODELBROKER_ASSIGN(const auto gone, restate(*session, held, deadline));
  {
    const std::lock_guard lock(mutex_);
    for (const std::uint64_t number : gone) held_.erase(number);
    session_ = std::move(session);
  }
  os_.event_fd_signal(wake_.get());  // the keeper has another descriptor to look at
  return {};
}

// The numbers of those that this broker does not have.
Result<std::vector<std::uint64_t>> Link::restate(const Session& session, const Leases& held, const Deadline& deadline) {
  const Deadline soon = deadline.at_most(kExchange);
  std::vector<std::uint64_t> gone;
  for (auto next = held.begin(); next != held.end();) {
    wire::Restate some;
    std::set<std::uint64_t> stated;
    for (; next != held.end() && some.leases.size() < kRestatedAtOnce; ++next) {
      some.leases.push_back(next->second);
      stated.insert(next->first);
    }
    MODELBROKER_ASSIGN(const auto reply, ask<wire::RestateReply>(session, next_id(), "lease.restate", some, soon));
    for (const std::uint64_t lease : reply.restated) stated.erase(lease);
    gone.insert(gone.end(), stated.begin(), stated.end());
  }
  return gone;
}

void Link::lose(const SharedSession& session) {
  {
    const std::lock_guard lock(mutex_);
    if (session_ != session) return;  // another thread has
    session_.reset();
    // Fresh sockets connect at once.
    idle_.clear();
    ++epoch_;
  }
  session->close();
  os_.event_fd_signal(wake_.get());
}

// ---- leases

void Link::drop(std::uint64_t lease) {
  if (pid_ != ::getpid()) return;  // a forked child: the lease is its parent's
  const std::lock_guard lock(mutex_);
  held_.erase(lease);
  dropped_.push_back(lease);
  os_.event_fd_signal(wake_.get());
}

// Tells the broker of leases that were dropped.
void Link::settle(const Deadline& deadline) {
  const auto first = [this]() -> std::optional<std::uint64_t> {
    const std::lock_guard lock(mutex_);
    return dropped_.empty() ? std::nullopt : std::optional(dropped_.front());
  };
  if (!first()) return;
  const std::unique_lock settling(settling_, deadline.left(kDetachTimeout));
  if (!settling) return;
  while (const auto lease = first()) {  // it stays there while it is told: others wait until it is
    if (!detach(*lease, deadline)) return;
    const std::lock_guard lock(mutex_);
    if (!dropped_.empty() && dropped_.front() == *lease) dropped_.pop_front();
  }
}

// False when it got no answer and should be told again. Without a session it has ended already.
bool Link::detach(std::uint64_t lease, const Deadline& deadline) {
  const SharedSession session = current();
  if (!session) return false;
  const Deadline soon = deadline.at_most(kDetachTimeout);
  const auto reply = ask<wire::DetachReply>(*session, next_id(), "model.detach", wire::Detach{lease}, soon);
  if (reply) return true;
  if (is_lost(reply.error())) lose(session);
  // No descriptor for a channel: not an answer, for a broker refuses no detach so.
  return !is_lost(reply.error()) && !is_unanswered(reply.error()) &&
         reply.error().code != ErrorCode::kResourceExhausted;
}

// ---- the keeper: keeps leases alive behind the program's back

void Link::keep() {
  Timeout most = kForever;
  Timeout backoff = kBackoffFirst;
  int tries = 0;
  while (true) {
    wait_for_something(most);
    {
      const std::lock_guard lock(mutex_);
      if (stopping_) return;
    }
    const Tended tended = tend();
    most = tended == Tended::kUntold ? kTellAgain : kForever;
    if (tended == Tended::kUnreachable) {
      most = backoff;
      backoff = std::min(2 * backoff, ++tries < kSoonTries ? kBackoffSoon : kBackoffMost);
    } else {
      backoff = kBackoffFirst;
      tries = 0;
    }
  }
}

void Link::wait_for_something(Timeout most) const {
  const SharedSession session = current();
  pollfd items[] = {{wake_.get(), POLLIN, 0}, {session ? session->descriptor() : -1, POLLRDHUP, 0}};
  (void)::poll(items, 2, static_cast<int>(most.count()));
  os_.event_fd_drain(wake_.get());
}

Link::Tended Link::tend() {
  if (const SharedSession session = current(); session && session->hung_up()) lose(session);
  bool orphaned = false;
  {
    const std::lock_guard lock(mutex_);
    orphaned = !session_ && !held_.empty();
  }
  if (orphaned && !open(Deadline(kExchange))) return Tended::kUnreachable;
  settle(Deadline(kDetachTimeout));
  const std::lock_guard lock(mutex_);
  return session_ && !dropped_.empty() ? Tended::kUntold : Tended::kIdle;
}

}  // namespace modelbroker::client
