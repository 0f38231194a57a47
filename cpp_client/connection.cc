#include "cpp_client/connection.h"

#include <fcntl.h>

#include "cpp_client/channel.h"
#include "cpp_client/find_broker.h"
#include "cpp_client/session.h"
#include "shm/text.h"
#include "shm/threads.h"

namespace modelbroker::client {
namespace {

constexpr Timeout kShort{10'000};  // for hello, which the broker answers from its books

}  // namespace

struct Connection::State {
  explicit State(Os& its_os) : os(its_os) {}
  Os& os;
  zmq::context_t context{1};
  wire::Endpoint endpoint;
  std::unique_ptr<Session> session;
  std::optional<Channel> channel;
  wire::SessionHelloReply hello;
  std::string prefix = random_prefix();
  std::uint64_t next_id = 0;
};

Connection::Connection(std::unique_ptr<State> state) noexcept : state_(std::move(state)) {}
Connection::Connection(Connection&&) noexcept = default;
Connection& Connection::operator=(Connection&&) noexcept = default;
Connection::~Connection() = default;

const wire::Endpoint& Connection::endpoint() const noexcept { return state_->endpoint; }
const wire::SessionHelloReply& Connection::hello() const noexcept { return state_->hello; }
int Connection::descriptor() const noexcept { return state_->session->descriptor(); }

Result<Connection> Connection::connect(Os& os, const ConnectOptions& options, const Deadline& deadline) {
  return find_broker(options, deadline, [&](const wire::Endpoint& endpoint) -> Result<Connection> {
    MODELBROKER_TRY(descriptors_left(os, kForAContext));
    MODELBROKER_TRY(threads_left(kThreadsOfAContext, "connecting to " + endpoint.broker()));
    MODELBROKER_ASSIGN(auto session, Session::open(os, endpoint, deadline));
    Connection connection(std::make_unique<State>(os));
    State& state = *connection.state_;
    state.endpoint = endpoint;
    state.session = std::move(session);
    MODELBROKER_ASSIGN(state.channel, Channel::connect(os, state.context, endpoint.broker()));
    MODELBROKER_ASSIGN(state.hello, connection.request<wire::SessionHelloReply>("session.hello", wire::Empty{},
                                                                                deadline.at_most(kShort).timeout()));
    return connection;
  });
}

Result<wire::Reply> Connection::exchange(std::string_view type, const Encode& encode, Timeout timeout) {
  State& state = *state_;
  if (state.channel->spoilt()) {
    MODELBROKER_ASSIGN(state.channel, Channel::connect(state.os, state.context, state.endpoint.broker()));
  }
  const std::string id = state.prefix + "-" + std::to_string(state.next_id++);
  const auto with_head = [&](std::uint64_t deadline_ms) {
    return encode({.request_id = id, .type = type, .session = state.session->token(), .deadline_ms = deadline_ms});
  };
  return state.channel->ask(with_head, id, type, Deadline(timeout), *state.session).map_error([&](Error error) {
    if (is_lost(error)) {
      return Error{ErrorCode::kUnavailable,
                   "the broker at " + state.endpoint.broker() + " went away: start it again and retry"};
    }
    return error;
  });
}

Result<std::string> Connection::offer_file(const Fd& file, const Deadline& deadline) {
  return state_->session->offer_file(file, deadline);
}

Result<Fd> Connection::open_block(const std::string& block, const Deadline& deadline) {
  return state_->session->open_block(block, deadline);
}

Result<Fd> open_source(Os& os, const std::string& path) {
  auto fd = os.open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0);
  if (!fd) return fail_errno(fd.error().number, "opening '" + printable(path) + "'");
  return std::move(*fd);
}

}  // namespace modelbroker::client
