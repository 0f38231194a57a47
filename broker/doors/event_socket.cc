#include "broker/doors/event_socket.h"

#include <algorithm>
#include <cassert>
#include <chrono>
#include <zmq.hpp>

#include "broker/base/log.h"
#include "broker/doors/private_bind.h"
#include "wire/frame.h"

namespace modelbroker {
namespace {

constexpr int kMostWaiting = 1000;                  // events for one subscriber; it misses what comes then
constexpr std::int64_t kLongestSubscription = 256;  // bytes: all that a subscriber has to say is a topic
constexpr int kHandshakeMs = 2000;
constexpr int kLingerMs = 200;

}  // namespace

struct EventSocket::Socket {
  zmq::context_t context{1};  // its own: a flood of events delays no reply
  zmq::socket_t pub{context, zmq::socket_type::pub};
};

EventSocket::EventSocket(std::string endpoint, std::string boot_id)
    : endpoint_(std::move(endpoint)), boot_id_(std::move(boot_id)), socket_(std::make_unique<Socket>()) {}
EventSocket::~EventSocket() = default;

Result<std::unique_ptr<EventSocket>> EventSocket::bind(const std::string& endpoint, std::string boot_id) {
  try {
    std::unique_ptr<EventSocket> events(new EventSocket(endpoint, std::move(boot_id)));
    zmq::socket_t& socket = events->socket_->pub;
    socket.set(zmq::sockopt::linger, kLingerMs);
    socket.set(zmq::sockopt::sndhwm, kMostWaiting);
    socket.set(zmq::sockopt::maxmsgsize, kLongestSubscription);
    socket.set(zmq::sockopt::handshake_ivl, kHandshakeMs);
    MODELBROKER_TRY(events->listen());
    return events;
  } catch (const zmq::error_t& error) {
    return fail_errno(error.num(), "binding " + endpoint);
  }
}

Result<void> EventSocket::listen() { return bind_private(socket_->pub, endpoint_); }

void EventSocket::publish(std::string_view type, const wire::EventData& data) {
  assert(std::ranges::find(wire::kEventTypes, type) != wire::kEventTypes.end());
  wire::Event event;
  event.boot_id = boot_id_;
  event.seq = ++seq_;
  event.type = type;
  event.time = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  event.data = data;
  const std::string bytes = wire::encode_event(event);
  try {
    (void)socket_->pub.send(zmq::buffer(event.type), zmq::send_flags::dontwait | zmq::send_flags::sndmore);
    (void)socket_->pub.send(zmq::buffer(bytes), zmq::send_flags::dontwait);
  } catch (const zmq::error_t& error) {
    log_warning("publishing " + event.type + ": " + error.what());
  }
}

// libzmq looks at what its peers sent only when the socket is used.
void EventSocket::take_subscriptions() { (void)socket_->pub.get(zmq::sockopt::events); }

}  // namespace modelbroker
