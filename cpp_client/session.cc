#include "cpp_client/session.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <random>
#include <span>

#include "cpp_client/refused.h"

namespace modelbroker::client {
namespace {

constexpr Timeout kLongest{10'000};  // the broker answers these from its books: longer means that it hangs
constexpr auto* kLostKey = "session_lost";
constexpr auto* kUnansweredKey = "unanswered";

tl::unexpected<Error> hangs(const std::string& path, const std::string& what) {
  return fail(ErrorCode::kDeadlineExceeded,
              "the broker at " + path + " did not " + what + " in time: it is busy or hangs; see its log");
}

bool ready(int socket, short what, const Deadline& deadline) {
  while (true) {
    pollfd item{socket, what, 0};
    const int ready = ::poll(&item, 1, static_cast<int>(deadline.left(kLongest).count()));
    if (ready > 0) return true;
    if ((ready < 0 && errno != EINTR) || deadline.passed()) return false;
  }
}

// Anybody may make a folder in /tmp: there the peer's uid must be ours or root's.
Result<void> check_peer(Os& os, const wire::Endpoint& endpoint, int socket) {
  const auto peer = os.peer_credentials(socket);
  if (!peer) return fail_errno(peer.error().number, "asking who serves " + endpoint.fds());
  if (peer->uid == 0 || peer->uid == os.uid()) return {};
  return fail(ErrorCode::kPermissionDenied, endpoint.fds() + " is served by uid " + std::to_string(peer->uid) +
                                                ", not by you: name it with MODELBROKER_ENDPOINT if that is what "
                                                "you want");
}

// Until when a lock is waited for, at most kLongest. By the system's clock: the thread sanitizer of clang 14 does not
// know waits by the steady one. Should that jump, whoever has the lock lets go of it all the same.
std::chrono::system_clock::time_point at(const Deadline& deadline) {
  return std::chrono::system_clock::now() + deadline.left(kLongest);
}

}  // namespace

Error lost(std::string message) { return {ErrorCode::kUnavailable, std::move(message), {{kLostKey, 1}}}; }

bool is_lost(const Error& error) {
  return std::ranges::any_of(std::array{kLostKey, "unknown_session", "stopping"},
                             [&](const char* key) { return error.details.contains(key); });
}

Error unanswered(std::string message) {
  return {ErrorCode::kDeadlineExceeded, std::move(message), {{kUnansweredKey, 1}}};
}

bool is_unanswered(const Error& error) { return error.details.contains(kUnansweredKey); }

std::string random_prefix() {
  std::random_device device;
  const std::uint64_t value = (std::uint64_t{device()} << 32U) | device();
  std::string text;
  for (unsigned i = 0; i < 16; ++i) text += "0123456789abcdef"[(value >> (4 * i)) & 15U];
  return text;
}

Result<std::unique_ptr<Session>> Session::open(Os& os, const wire::Endpoint& endpoint, const Deadline& deadline) {
  const Deadline soon = deadline.at_most(kLongest);
  // A stale socket file refuses; one that accepts has a broker behind it.
  auto socket = os.connect_seqpacket(endpoint.fds(), soon.timeout());
  if (!socket) {
    if (socket.error().number == EACCES) return tl::unexpected(refused(endpoint));
    if (socket.error().number == EAGAIN) return hangs(endpoint.fds(), "take the connection");
    Error error = error_from_errno(socket.error().number, "connecting to " + endpoint.fds());
    return tl::unexpected(lost(std::move(error.message)));
  }
  if (endpoint.owned) MODELBROKER_TRY(check_peer(os, endpoint, socket->get()));
  std::unique_ptr<Session> session(new Session(os, endpoint.fds(), std::move(*socket)));
  MODELBROKER_ASSIGN(auto opened, session->exchange<wire::SessionOpenReply>("session.open", wire::Empty{}, {}, soon));
  session->token_ = std::move(opened.first.session);
  return session;
}

bool Session::hung_up() const {
  pollfd item{socket_.get(), POLLRDHUP, 0};
  return ::poll(&item, 1, 0) > 0;
}

void Session::close() noexcept { (void)::shutdown(socket_.get(), SHUT_RDWR); }

template <class Reply, class M>
Result<std::pair<Reply, std::vector<Fd>>> Session::exchange(std::string_view type, const M& data,
                                                            const std::vector<int>& descriptors,
                                                            const Deadline& deadline) {
  const Deadline soon = deadline.at_most(kLongest);
  const auto late = [&] { return hangs(path_, "answer " + std::string(type)); };
  const std::unique_lock lock(exchanging_, at(soon));
  if (!lock) return late();
  const std::string id = std::to_string(next_id_++);
  const std::string bytes = wire::encode_request({.request_id = id, .type = type}, data);
  const auto gone = [&](const Errno& error) {
    Error told = error_from_errno(error.number, "talking to the broker at " + path_);
    const bool ended = error.number == EPIPE || error.number == ECONNRESET || error.number == ENOTCONN;
    return tl::unexpected(ended ? lost(std::move(told.message)) : std::move(told));
  };
  if (!ready(socket_.get(), POLLOUT, soon)) return late();
  if (auto sent = os_.send(socket_.get(), std::as_bytes(std::span(bytes)), descriptors); !sent) {
    return gone(sent.error());
  }
  while (true) {
    if (!ready(socket_.get(), POLLIN, soon)) return late();
    auto packet = os_.receive(socket_.get(), wire::kPacketLimit, wire::kPacketDescriptors);
    if (!packet) return gone(packet.error());
    if (packet->bytes.empty()) return tl::unexpected(lost("the broker at " + path_ + " closed the connection"));
    MODELBROKER_ASSIGN(
        auto reply, wire::Reply::decode({reinterpret_cast<const char*>(packet->bytes.data()), packet->bytes.size()}));
    // Not ours: the late reply of an exchange that was given up. Without an id: about what could not be read.
    if (reply.request_id() != id && !reply.request_id().empty()) continue;
    MODELBROKER_ASSIGN(auto content, reply.template data<Reply>());
    return std::pair(std::move(content), std::move(packet->descriptors));
  }
}

Result<std::string> Session::offer_file(const Fd& file, const Deadline& deadline) {
  MODELBROKER_ASSIGN(auto reply, exchange<wire::FileOfferReply>("file.offer", wire::Empty{}, {file.get()}, deadline));
  return std::move(reply.first.file);
}

Result<Fd> Session::open_block(const std::string& block, const Deadline& deadline) {
  MODELBROKER_ASSIGN(auto reply, exchange<wire::BlockOpenReply>("block.open", wire::BlockOpen{block}, {}, deadline));
  if (reply.second.size() != 1) return fail(ErrorCode::kInternal, "the broker sent no descriptor");
  return std::move(reply.second.front());
}

}  // namespace modelbroker::client
