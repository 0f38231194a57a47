#include "cpp_client/channel.h"

#include <poll.h>

#include <cerrno>
#include <vector>

namespace modelbroker::client {
namespace {

constexpr Timeout kSlice{1000};   // how long it sleeps at most between two looks
constexpr Timeout kRepeat{5000};  // after so long a silence it asks again: the broker joins repeats
constexpr std::size_t kForASocket = 4;
constexpr Timeout kGrace{500};  // the broker's own "deadline_exceeded" is worth waiting for

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

}  // namespace

Result<void> descriptors_left(Os& os, std::size_t wanted) {
  std::vector<Fd> some;
  while (some.size() < wanted) {
    auto one = os.event_fd();
    if (!one) {
      return fail(ErrorCode::kResourceExhausted, "fewer than " + std::to_string(wanted) +
                                                     " descriptors are left for a connection to the broker: close "
                                                     "some, or raise the limit (ulimit -n)");
    }
    some.push_back(std::move(*one));
  }
  return {};
}

Result<Channel> Channel::connect(Os& os, zmq::context_t& context, const std::string& endpoint) {
  MODELBROKER_TRY(descriptors_left(os, kForASocket));
  try {
    zmq::socket_t socket(context, zmq::socket_type::dealer);
    socket.set(zmq::sockopt::linger, 0);
    socket.connect(endpoint);
    Channel channel(std::move(socket));
    channel.readable_ = channel.socket_.get(zmq::sockopt::fd);
    return channel;
  } catch (const zmq::error_t& error) {
    return fail(ErrorCode::kUnavailable, endpoint + ": " + error.what());
  }
}

Result<wire::Reply> Channel::ask(const Encode& encode, std::string_view id, std::string_view type,
                                 const Deadline& deadline, const Session& session) {
  spoilt_ = true;
  try {
    auto reply = exchange(encode, id, type, deadline, session);
    spoilt_ = !reply;
    return reply;
  } catch (const zmq::error_t& error) {
    return fail(ErrorCode::kUnavailable, std::string("talking to the broker: ") + error.what());
  }
}

Result<wire::Reply> Channel::exchange(const Encode& encode, std::string_view id, std::string_view type,
                                      const Deadline& deadline, const Session& session) {
  const auto send = [&](const std::string& bytes) {
    // Full: the broker does not read; the wait below ends as it must.
    (void)again_if_interrupted([&] { return socket_.send(zmq::buffer(bytes), zmq::send_flags::dontwait); });
  };
  send(encode(deadline.milliseconds()));
  Deadline repeat(kRepeat);
  // A little later than the broker's own answer to the deadline would come.
  const Deadline end(deadline.never() ? Timeout{0} : deadline.left(Timeout::max() / 2) + kGrace);
  for (bool hung_up = false; true; hung_up = wait(end.left(repeat.left(kSlice)), session)) {
    zmq::message_t message;
    while (again_if_interrupted([&] { return socket_.recv(message, zmq::recv_flags::dontwait); })) {
      auto reply = wire::Reply::decode(message.to_string_view());
      // One request at a time: what has no id (it could not be read) is about ours.
      if (!reply || reply->request_id() == id || reply->request_id().empty()) return reply;
    }
    if (hung_up) return tl::unexpected(lost("the broker went away: start it again and retry"));
    if (end.passed()) {
      return tl::unexpected(unanswered("the broker did not answer " + std::string(type) + " within " +
                                       std::to_string(deadline.timeout().count()) +
                                       " ms: it is busy or hangs; see its log"));
    }
    if (repeat.passed()) {
      repeat = Deadline(kRepeat);
      send(encode(deadline.milliseconds()));
    }
  }
}

// Until a reply may be here, or the session has ended (true). libzmq's descriptor tells once of what is new since its
// socket was last found empty, which is where we come from.
bool Channel::wait(Timeout most, const Session& session) {
  pollfd items[] = {{readable_, POLLIN, 0}, {session.descriptor(), POLLRDHUP, 0}};
  return ::poll(items, 2, static_cast<int>(most.count())) > 0 && items[1].revents != 0;
}

}  // namespace modelbroker::client
