#include "broker/server/events.h"

#include <sys/stat.h>

#include <algorithm>
#include <cassert>
#include <chrono>
#include <zmq.hpp>

#include "broker/server/log.h"
#include "wire/frame.h"

namespace modelbroker {
namespace {

constexpr int kMostWaiting = 1000;                  // events for one subscriber; it misses what comes then
constexpr std::int64_t kLongestSubscription = 256;  // bytes: all that a subscriber has to say is a topic
constexpr int kHandshakeMs = 2000;
constexpr int kLingerMs = 200;

}  // namespace

struct Events::Socket {
  zmq::context_t context{1};  // its own: a flood of events delays no reply
  zmq::socket_t pub{context, zmq::socket_type::pub};
};

Events::Events(std::string endpoint, std::string boot_id)
    : endpoint_(std::move(endpoint)), boot_id_(std::move(boot_id)), socket_(std::make_unique<Socket>()) {}
Events::~Events() = default;

Result<std::unique_ptr<Events>> Events::bind(const std::string& endpoint, std::string boot_id) {
  try {
    std::unique_ptr<Events> events(new Events(endpoint, std::move(boot_id)));
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

Result<void> Events::listen() {
  const mode_t before = ::umask(0177);  // the socket's file is 0600 from its first moment
  const int failed = ::zmq_bind(socket_->pub.handle(), endpoint_.c_str()) == 0 ? 0 : ::zmq_errno();
  ::umask(before);
  if (failed != 0) return fail_errno(failed, "binding " + endpoint_);
  return {};
}

void Events::publish(std::string_view type, const wire::EventData& data) {
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
void Events::take_subscriptions() { (void)socket_->pub.get(zmq::sockopt::events); }

wire::EventData event_of(const Resident& resident) {
  wire::EventData data;
  data.model = resident.name();
  // Subscribers are of all kinds: where a file lies that the group cannot read is not theirs to know.
  if (!resident.is_private) data.path = resident.path;
  data.block = resident.block->id();
  data.generation = resident.block->name().generation;
  data.bytes = resident.bytes();
  return data;
}

wire::EventData pin_of(const Resident& resident) {
  wire::EventData data;
  data.model = resident.name();
  data.block = resident.block->id();
  return data;
}

wire::EventData event_of(const Peer& peer) {
  wire::EventData data;
  data.uid = peer.uid;
  data.pid = static_cast<std::uint64_t>(peer.pid);
  return data;
}

}  // namespace modelbroker
