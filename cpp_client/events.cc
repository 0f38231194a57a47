#include "cpp_client/events.h"

#include <algorithm>
#include <array>
#include <zmq.hpp>

#include "cpp_client/channel.h"
#include "shm/threads.h"

namespace modelbroker::client {
namespace {

using Clock = std::chrono::steady_clock;
constexpr Timeout kAnswer{10000};    // for a snapshot
constexpr Timeout kQuiet{5000};      // so long without an event: have some been missed?
constexpr Timeout kInFlight{500};    // what was published is here by then
constexpr Timeout kHandshake{2000};  // of the SUB socket
constexpr Timeout kLastWords{100};   // a stopping broker's
constexpr Timeout kRetry{100};

Timeout until(Clock::time_point end) { return std::max(std::chrono::ceil<Timeout>(end - Clock::now()), Timeout{0}); }

class Subscription {
 public:
  // Subscribes to everything, for `seq` counts everything; returns when the broker has accepted us.
  explicit Subscription(const std::string& endpoint) : socket_(context_, zmq::socket_type::sub) {
    zmq::socket_t monitor(context_, zmq::socket_type::pair);
    constexpr auto* kMonitor = "inproc://events";
    if (zmq_socket_monitor(socket_.handle(), kMonitor, ZMQ_EVENT_HANDSHAKE_SUCCEEDED) != 0) throw zmq::error_t();
    monitor.set(zmq::sockopt::linger, 0);
    monitor.set(zmq::sockopt::rcvtimeo, static_cast<int>(kHandshake.count()));
    monitor.connect(kMonitor);
    socket_.set(zmq::sockopt::linger, 0);
    socket_.set(zmq::sockopt::maxmsgsize, static_cast<std::int64_t>(wire::kMessageLimit));
    socket_.set(zmq::sockopt::subscribe, "");
    socket_.connect(endpoint);
    zmq::message_t accepted;
    (void)monitor.recv(accepted);  // without it the first snapshot may be followed by another: no harm
    (void)zmq_socket_monitor(socket_.handle(), nullptr, 0);
  }

  [[nodiscard]] void* handle() { return socket_.handle(); }

  [[nodiscard]] std::optional<Result<wire::Event>> receive() {
    zmq::message_t frame;
    if (!socket_.recv(frame, zmq::recv_flags::dontwait)) return std::nullopt;
    while (frame.more()) (void)socket_.recv(frame);
    return wire::decode_event(frame.to_string_view());
  }

 private:
  zmq::context_t context_{1};
  zmq::socket_t socket_;
};

}  // namespace

struct EventStream::State {
  Os* os = nullptr;
  std::string endpoint;  // of the broker that was found first
  std::optional<Connection> connection;
  std::optional<Subscription> subscription;
  std::string boot_id;
  std::uint64_t seq = 0;
  bool synced = false;  // all up to `seq` is known
  bool behind = false;  // the broker says that there is more, which may be on its way
  Clock::time_point compare_at;
  Why why = Why::kStart;
  Deadline deadline{Timeout{0}};

  [[nodiscard]] Timeout patience() const { return std::max(deadline.left(kAnswer), Timeout{1}); }

  [[nodiscard]] Result<void> adopt(Connection fresh) {
    lose();
    MODELBROKER_TRY(descriptors_left(*os, kForAContext));
    MODELBROKER_TRY(threads_left(kThreadsOfAContext, "subscribing to events"));
    // The socket first: what happens after the snapshot must reach it.
    subscription.emplace("ipc://" + fresh.hello().events);
    connection = std::move(fresh);
    return {};
  }

  void lose() {
    subscription.reset();
    connection.reset();
    synced = false;
  }

  void heard() {
    behind = false;
    compare_at = Clock::now() + kQuiet;
  }

  // What an error of the connection means: nothing to wait for, or a broker that is gone.
  [[nodiscard]] Result<void> survive(const Error& error) {
    if (error.code != ErrorCode::kUnavailable && error.code != ErrorCode::kDeadlineExceeded &&
        error.code != ErrorCode::kFailedPrecondition) {
      return tl::unexpected(error);
    }
    lose();
    return {};
  }

  [[nodiscard]] Result<void> reconnect() {
    auto fresh = Connection::connect(*os, {.endpoint = endpoint, .timeout = Timeout{0}}, deadline);
    if (!fresh) return survive(fresh.error());
    return adopt(std::move(*fresh));
  }

  [[nodiscard]] Result<std::optional<Item>> snapshot() {
    auto state = connection->request<wire::EventsSnapshotReply>("events.snapshot", wire::Empty{}, patience());
    if (!state) {
      MODELBROKER_TRY(survive(state.error()));
      return std::nullopt;
    }
    if (!boot_id.empty() && boot_id != state->boot_id) why = Why::kRestart;
    boot_id = state->boot_id;
    seq = state->seq;
    synced = true;
    heard();
    return Snapshot{std::exchange(why, Why::kGap), std::move(*state)};
  }

  // An event that has its turn; nothing for one that the snapshot knew, or after a gap.
  [[nodiscard]] std::optional<Item> take(wire::Event event) {
    heard();
    if (event.boot_id != boot_id) {
      lose();  // another broker, before the old one's hang-up was seen
    } else if (event.seq > seq + 1) {
      synced = false;
    } else if (event.seq == seq + 1) {
      seq = event.seq;
      return event;
    }
    return std::nullopt;
  }

  // Nothing was heard for a while.
  [[nodiscard]] Result<void> compare() {
    if (std::exchange(behind, false)) {
      synced = false;
      return {};
    }
    const auto ping = connection->request<wire::SessionPingReply>("session.ping", wire::Empty{}, patience());
    if (!ping) return survive(ping.error());
    heard();
    if (ping->boot_id != boot_id || ping->seq > seq) {
      behind = true;
      compare_at = Clock::now() + kInFlight;
    }
    return {};
  }
};

EventStream::EventStream(std::unique_ptr<State> state) noexcept : state_(std::move(state)) {}
EventStream::EventStream(EventStream&&) noexcept = default;
EventStream& EventStream::operator=(EventStream&&) noexcept = default;
EventStream::~EventStream() = default;

Result<EventStream> EventStream::open(Os& os, const ConnectOptions& options, const Deadline& deadline) {
  MODELBROKER_ASSIGN(Connection connection, Connection::connect(os, options, deadline));
  EventStream stream(std::make_unique<State>());
  stream.state_->os = &os;
  stream.state_->deadline = deadline;
  stream.state_->endpoint = connection.endpoint().broker();
  try {
    MODELBROKER_TRY(stream.state_->adopt(std::move(connection)));
  } catch (const zmq::error_t& error) {
    return fail(ErrorCode::kUnavailable, std::string("subscribing to events: ") + error.what());
  }
  return stream;
}

Result<std::optional<EventStream::Item>> EventStream::next(Timeout timeout, int wake) {
  State& state = *state_;
  const auto end = timeout.count() > 0 ? Clock::now() + timeout : Clock::time_point::max();
  try {
    while (true) {
      if (!state.connection) MODELBROKER_TRY(state.reconnect());
      if (state.connection && !state.synced) {
        MODELBROKER_ASSIGN(auto snapshot, state.snapshot());
        if (snapshot) return snapshot;
      }
      std::array<zmq::pollitem_t, 3> items{{{nullptr, wake, ZMQ_POLLIN, 0}}};
      std::size_t count = wake >= 0 ? 1 : 0;
      auto wait_end = Clock::now() + kRetry;
      if (state.connection) {
        items.at(count++) = {state.subscription->handle(), 0, ZMQ_POLLIN, 0};
        items.at(count++) = {nullptr, state.connection->descriptor(), ZMQ_POLLIN, 0};
        wait_end = state.compare_at;
      }
      zmq::poll(items.data(), count, until(std::min(wait_end, end)));
      if (wake >= 0 && items[0].revents != 0) return std::nullopt;
      if (state.connection) {
        if (auto event = state.subscription->receive()) {
          if (!*event) return tl::unexpected(event->error());
          if (auto item = state.take(std::move(**event))) return item;
          continue;
        }
        if (items.at(count - 1).revents != 0) {
          // What it said last may come by the other socket a little later.
          zmq::pollitem_t last{state.subscription->handle(), 0, ZMQ_POLLIN, 0};
          if (zmq::poll(&last, 1, kLastWords) == 0) state.lose();
          continue;
        }
      }
      if (state.connection && Clock::now() >= state.compare_at) MODELBROKER_TRY(state.compare());
      if (Clock::now() >= end) return std::nullopt;
    }
  } catch (const zmq::error_t& error) {
    if (error.num() == EINTR) return std::nullopt;
    return fail(ErrorCode::kInternal, std::string("listening to events: ") + error.what());
  }
}

std::string_view to_string(EventStream::Why why) noexcept {
  switch (why) {
    case EventStream::Why::kStart:
      return "start";
    case EventStream::Why::kGap:
      return "gap";
    case EventStream::Why::kRestart:
      return "restart";
  }
  return "gap";
}

}  // namespace modelbroker::client
