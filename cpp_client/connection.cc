#include "cpp_client/connection.h"

#include <fcntl.h>
#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <random>
#include <span>
#include <thread>
#include <zmq.hpp>

namespace modelbroker::client {
namespace {

using Clock = std::chrono::steady_clock;
constexpr Timeout kPacketTimeout{10000};
constexpr Timeout kLongestPoll{60000};
constexpr Timeout kAnswerGrace{500};

std::string random_prefix() {
  std::random_device device;
  const std::uint64_t value = (std::uint64_t{device()} << 32U) | device();
  std::string text;
  for (unsigned i = 0; i < 16; ++i) text += "0123456789abcdef"[(value >> (4 * i)) & 15U];
  return text;
}

// What is left until `end` (time_point::max(): no end), between 0 and `most`.
Timeout left(Clock::time_point end, Timeout most) {
  if (end == Clock::time_point::max()) return most;
  return std::clamp(std::chrono::duration_cast<Timeout>(end - Clock::now()), Timeout{0}, most);
}

// A signal that the program handles ends a wait early; whoever waits looks at the time himself.
void poll(std::span<zmq::pollitem_t> items, Timeout timeout) {
  try {
    zmq::poll(items.data(), items.size(), timeout);
  } catch (const zmq::error_t& error) {
    if (error.num() != EINTR) throw;
    for (zmq::pollitem_t& item : items) item.revents = 0;
  }
}

// A call of libzmq's that does not wait may still meet a signal.
template <class Call>
auto again_if_interrupted(Call call) {
  while (true) {
    try {
      return call();
    } catch (const zmq::error_t& error) {
      if (error.num() != EINTR) throw;
    }
  }
}

bool readable(int socket, Clock::time_point end) {
  while (true) {
    pollfd item{socket, POLLIN, 0};
    const int ready = ::poll(&item, 1, static_cast<int>(left(end, kLongestPoll).count()));
    if (ready > 0) return true;
    if ((ready < 0 && errno != EINTR) || Clock::now() >= end) return false;
  }
}

Error no_broker(const std::vector<wire::Endpoint>& tried) {
  std::string where;
  for (const auto& endpoint : tried) where += (where.empty() ? "" : " and ") + endpoint.broker();
  return {ErrorCode::kUnavailable,
          "no broker answers at " + where +
              ": start one with 'modelbroker serve', or set MODELBROKER_ENDPOINT or --endpoint"};
}

}  // namespace

struct Connection::State {
  Os* os = nullptr;
  zmq::context_t context{1};
  zmq::socket_t socket;
  wire::Endpoint endpoint;
  wire::SessionHelloReply hello;
  Fd session_socket;
  std::string token;
  std::string prefix = random_prefix();
  std::uint64_t next_id = 0;
};

Connection::Connection(std::unique_ptr<State> state) noexcept : state_(std::move(state)) {}
Connection::Connection(Connection&&) noexcept = default;
Connection& Connection::operator=(Connection&&) noexcept = default;
Connection::~Connection() = default;

const wire::Endpoint& Connection::endpoint() const noexcept { return state_->endpoint; }
const wire::SessionHelloReply& Connection::hello() const noexcept { return state_->hello; }

int Connection::descriptor() const noexcept { return state_->session_socket.get(); }

Result<Connection> Connection::connect(Os& os, const ConnectOptions& options) {
  MODELBROKER_ASSIGN(const auto endpoints, wire::endpoints_to_try(options.endpoint));
  const auto end = Clock::now() + options.timeout;
  while (true) {
    for (const auto& endpoint : endpoints) {
      // A stale socket file refuses; one that accepts has a broker behind it.
      auto session_socket = os.connect_seqpacket(endpoint.fds());
      if (session_socket) return open(os, endpoint, std::move(*session_socket));
      if (session_socket.error().number == EACCES) {
        return fail(ErrorCode::kPermissionDenied,
                    "you may not connect to " + endpoint.fds() + ": it belongs to another user's broker");
      }
    }
    if (Clock::now() >= end) return tl::unexpected(no_broker(endpoints));
    std::this_thread::sleep_for(Timeout{20});
  }
}

Result<Connection> Connection::open(Os& os, const wire::Endpoint& endpoint, Fd session_socket) {
  Connection connection(std::make_unique<State>());
  State& state = *connection.state_;
  state.os = &os;
  state.endpoint = endpoint;
  state.session_socket = std::move(session_socket);
  try {
    state.socket = zmq::socket_t(state.context, zmq::socket_type::dealer);
    state.socket.set(zmq::sockopt::linger, 0);
    state.socket.connect(endpoint.broker());
  } catch (const zmq::error_t& error) {
    return fail(ErrorCode::kUnavailable, endpoint.broker() + ": " + error.what());
  }
  MODELBROKER_ASSIGN(auto opened,
                     connection.exchange_packet<wire::SessionOpenReply>("session.open", wire::Empty{}, {}));
  state.token = std::move(opened.first.session);
  MODELBROKER_ASSIGN(state.hello,
                     connection.request<wire::SessionHelloReply>("session.hello", wire::Empty{}, kPacketTimeout));
  return connection;
}

Result<wire::Reply> Connection::exchange(std::string_view type, const Encode& encode, Timeout timeout) {
  State& state = *state_;
  const std::string id = state.prefix + "-" + std::to_string(state.next_id++);
  // A little later than the broker's own answer to the deadline would come.
  const auto end = timeout.count() > 0 ? Clock::now() + timeout + kAnswerGrace : Clock::time_point::max();
  const std::string bytes = encode({.request_id = id,
                                    .type = type,
                                    .session = state.token,
                                    .deadline_ms = static_cast<std::uint64_t>(timeout.count())});
  try {
    (void)again_if_interrupted([&] { return state.socket.send(zmq::buffer(bytes), zmq::send_flags::dontwait); });
    while (true) {
      // The session's connection is watched too: its end is how a broker's death shows.
      zmq::pollitem_t items[] = {{state.socket.handle(), 0, ZMQ_POLLIN, 0},
                                 {nullptr, state.session_socket.get(), ZMQ_POLLIN, 0}};
      poll(items, left(end, kLongestPoll));
      zmq::message_t message;
      while (again_if_interrupted([&] { return state.socket.recv(message, zmq::recv_flags::dontwait); })) {
        auto reply = wire::Reply::decode(message.to_string_view());
        // One request at a time: what has no id (it could not be read) is about ours.
        if (!reply || reply->request_id() == id || reply->request_id().empty()) return reply;
      }
      if (items[1].revents != 0) {
        return fail(ErrorCode::kUnavailable,
                    "the broker at " + state.endpoint.broker() + " went away: start it again and retry");
      }
      if (Clock::now() >= end) {
        return fail(ErrorCode::kDeadlineExceeded, "the broker at " + state.endpoint.broker() + " did not answer " +
                                                      std::string(type) + " within " + std::to_string(timeout.count()) +
                                                      " ms");
      }
    }
  } catch (const zmq::error_t& error) {
    return fail(ErrorCode::kUnavailable, std::string("talking to the broker: ") + error.what());
  }
}

template <class Reply, class M>
Result<std::pair<Reply, std::vector<Fd>>> Connection::exchange_packet(std::string_view type, const M& data,
                                                                      const std::vector<int>& descriptors) {
  State& state = *state_;
  const std::string id = std::to_string(state.next_id++);
  const std::string bytes = wire::encode_request({.request_id = id, .type = type}, data);
  const auto gone = [&](const Errno& error) {
    return fail_errno(error.number, "talking to the broker at " + state.endpoint.fds());
  };
  if (auto sent = state.os->send(state.session_socket.get(), std::as_bytes(std::span(bytes)), descriptors); !sent) {
    return gone(sent.error());
  }
  if (!readable(state.session_socket.get(), Clock::now() + kPacketTimeout)) {
    return fail(ErrorCode::kDeadlineExceeded,
                "the broker at " + state.endpoint.fds() + " did not answer " + std::string(type));
  }
  auto packet = state.os->receive(state.session_socket.get(), wire::kPacketLimit, wire::kPacketDescriptors);
  if (!packet) return gone(packet.error());
  if (packet->bytes.empty()) {
    return fail(ErrorCode::kUnavailable, "the broker at " + state.endpoint.fds() + " closed the connection");
  }
  MODELBROKER_ASSIGN(auto reply,
                     wire::Reply::decode({reinterpret_cast<const char*>(packet->bytes.data()), packet->bytes.size()}));
  MODELBROKER_ASSIGN(auto content, reply.template data<Reply>());
  return std::pair(std::move(content), std::move(packet->descriptors));
}

Result<std::string> Connection::offer_file(const Fd& file) {
  MODELBROKER_ASSIGN(auto reply, exchange_packet<wire::FileOfferReply>("file.offer", wire::Empty{}, {file.get()}));
  return std::move(reply.first.file);
}

Result<Fd> Connection::open_block(const std::string& block) {
  MODELBROKER_ASSIGN(auto reply, exchange_packet<wire::BlockOpenReply>("block.open", wire::BlockOpen{block}, {}));
  if (reply.second.size() != 1) return fail(ErrorCode::kInternal, "the broker sent no descriptor");
  return std::move(reply.second.front());
}

Result<Fd> open_source(Os& os, const std::string& path) {
  auto fd = os.open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0);
  if (!fd) return fail_errno(fd.error().number, "opening '" + wire::printable(path) + "'");
  return std::move(*fd);
}

}  // namespace modelbroker::client
