#include "broker/doors/fd_socket.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/random.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <utility>

#include "broker/base/log.h"
#include "broker/doors/gate.h"
#include "broker/models/model_events.h"
#include "shm/block_format.h"
#include "shm/text.h"

namespace modelbroker {
namespace {
constexpr std::size_t kMostConnections = 10000;
constexpr std::chrono::milliseconds kPause{100};
constexpr std::chrono::seconds kSilence{10};  // of a connection that opens no session
constexpr Duration kBetweenExpiries = std::chrono::seconds(1);
}  // namespace

std::string random_token() {
  std::array<std::uint8_t, 16> bytes{};
  // Never short for 16 bytes, and never fails once the machine has started (getrandom(2)).
  if (::getrandom(bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) std::abort();
  return to_hex(bytes);
}

Result<std::unique_ptr<FdSocket>> FdSocket::listen(const Environment& env, Workers& workers, RamStore& ram, Loop& loop,
                                                   EventSink& events, const std::string& path,
                                                   SessionEnded session_ended) {
  std::unique_ptr<FdSocket> made(new FdSocket(env, workers, ram, loop, events, path, std::move(session_ended)));
  MODELBROKER_TRY(made->open_listener());
  return made;
}

Result<void> FdSocket::open_listener() {
  auto listener = env_.os.listen_seqpacket(path_, 0600);
  if (!listener) return fail_errno(listener.error().number, "listening at '" + path_ + "'");
  if (listener_watch_ != 0) loop_.unwatch(std::exchange(listener_watch_, 0));
  listener_ = std::move(*listener);
  return watch_listener();
}

FdSocket::~FdSocket() {
  if (listener_watch_ != 0) loop_.unwatch(listener_watch_);
  for (const auto& [id, connection] : connections_) {
    loop_.unwatch(connection.socket_watch);
    if (connection.pidfd_watch != 0) loop_.unwatch(connection.pidfd_watch);
    loop_.cancel(connection.silent);
  }
}

Result<void> FdSocket::watch_listener() {
  MODELBROKER_ASSIGN(listener_watch_, loop_.watch(listener_.get(), EPOLLIN, [this](std::uint32_t) { accept(); }));
  return {};
}

// Out of descriptors: a listener that stays readable would spin the loop.
void FdSocket::pause_accepting() {
  loop_.unwatch(std::exchange(listener_watch_, 0));
  loop_.after(kPause, [this] {
    if (listener_watch_ != 0) return;  // another one by now
    if (auto again = watch_listener(); !again) pause_accepting();
  });
}

void FdSocket::accept() {
  auto socket = env_.os.accept(listener_.get());
  if (!socket) {
    const int error = socket.error().number;
    if (error == EAGAIN || error == EINTR || error == ECONNABORTED) return;
    log_warning("accepting a session: " + error_from_errno(error, "accept").message);
    return pause_accepting();
  }
  const auto credentials = env_.os.peer_credentials(socket->get());
  if (!credentials || connections_.size() >= kMostConnections) return;
  Peer peer{credentials->uid, credentials->pid, {credentials->gid}};
  if (const auto others = env_.os.peer_groups(socket->get())) {
    peer.groups.insert(peer.groups.end(), others->begin(), others->end());
  }
  if (!workers_.rights.enter(peer)) return log_warning(workers_.rights.not_served(peer.uid).message);
  const ConnectionId id = next_id_++;
  Connection connection;
  connection.socket = std::move(*socket);
  connection.peer = std::move(peer);
  auto watching =
      loop_.watch(connection.socket.get(), EPOLLIN | EPOLLRDHUP, [this, id](std::uint32_t) { receive(id); });
  if (!watching) {
    log_warning(watching.error().message);
    return;
  }
  connection.socket_watch = *watching;
  watch_death(connection, id);
  connection.silent = loop_.after(kSilence, [this, id] {
    const auto late = connections_.find(id);
    if (late != connections_.end() && late->second.session == 0) close(id);
  });
  connections_.emplace(id, std::move(connection));
}

// A forked child may hold the connection open: the death of the process itself counts.
void FdSocket::watch_death(Connection& connection, ConnectionId id) {
  auto pidfd = env_.os.peer_pidfd(connection.socket.get());
  if (!pidfd && connection.peer.pid > 0) pidfd = env_.os.pidfd_open(connection.peer.pid);
  if (!pidfd) return;  // hang-up alone must do
  connection.pidfd = std::move(*pidfd);
  auto watching = loop_.watch(connection.pidfd.get(), EPOLLIN, [this, id](std::uint32_t) { close(id); });
  if (watching) connection.pidfd_watch = *watching;
}

void FdSocket::close(ConnectionId id) {
  const auto found = connections_.find(id);
  if (found == connections_.end()) return;
  const Connection connection = std::move(found->second);
  connections_.erase(found);
  loop_.cancel(connection.silent);
  loop_.unwatch(connection.socket_watch);
  if (connection.pidfd_watch != 0) loop_.unwatch(connection.pidfd_watch);
  if (connection.session != 0) session_ended_(connection.session);
}

void FdSocket::close_session(SessionId session) {
  for (const auto& [id, connection] : connections_) {
    if (connection.session == session) return close(ConnectionId{id});
  }
}

void FdSocket::receive(ConnectionId id) {
  const auto found = connections_.find(id);
  if (found == connections_.end()) return;
  Connection& connection = found->second;
  auto packet = env_.os.receive(connection.socket.get(), wire::kPacketLimit, wire::kPacketDescriptors);
  if (!packet) {
    const int error = packet.error().number;
    if (error == EAGAIN || error == EINTR) return;
    if (error != EMSGSIZE && error != EMFILE) return close(id);
    const Error told = error == EMFILE ? error_from_errno(error, "the broker takes no descriptor")
                                       : Error{ErrorCode::kInvalidArgument,
                                               "the packet is longer than 64 KiB or carries more than 4 descriptors"};
    const std::string bytes = wire::encode_error({}, told);
    if (!env_.os.send(connection.socket.get(), std::as_bytes(std::span(bytes)), {})) close(id);
    return;
  }
  if (packet->bytes.empty()) return close(id);
  const Answer reply = answer(connection, *packet);
  const int descriptor = reply.descriptor.get();
  const std::span<const int> descriptors(&descriptor, reply.descriptor ? 1 : 0);
  // A peer that does not read its replies loses its session, not our time.
  if (!env_.os.send(connection.socket.get(), std::as_bytes(std::span(reply.bytes)), descriptors)) close(id);
}

FdSocket::Answer FdSocket::answer(Connection& connection, Os::Packet& packet) {
  wire::ReplyTo to;
  const std::string_view bytes(reinterpret_cast<const char*>(packet.bytes.data()), packet.bytes.size());
  auto request = wire::Request::decode(bytes, wire::kPacketLimit, &to);
  if (!request) return {wire::encode_error(to, request.error()), {}};
  auto served = serve(connection, *request, packet.descriptors);
  if (!served) return {wire::encode_error(request->reply_to(), served.error()), {}};
  return std::move(*served);
}

Result<FdSocket::Answer> FdSocket::serve(Connection& connection, const wire::Request& request,
                                         std::vector<Fd>& descriptors) {
  if (request.type() == "session.open") return open_session(connection, request.reply_to());
  if (request.type() != "file.offer" && request.type() != "block.open") {
    return fail(ErrorCode::kUnimplemented,
                "'" + printable(request.type(), 64) + "' is not served on the fd socket: send it over ZeroMQ");
  }
  Session* const session = workers_.sessions.find(connection.session);
  if (session == nullptr) return fail(ErrorCode::kFailedPrecondition, "send session.open first");
  if (request.type() == "file.offer") return offer_file(*session, request.reply_to(), descriptors);
  return open_block(*session, request);
}

Result<FdSocket::Answer> FdSocket::open_session(Connection& connection, const wire::ReplyTo& to) {
  if (connection.session != 0) {
    return fail(ErrorCode::kFailedPrecondition, "this connection has its session already");
  }
  MODELBROKER_ASSIGN(const Session* session, workers_.sessions.open(connection.peer, random_token(), env_.clock.now()));
  connection.session = session->id;
  events_.publish("session.opened", event_of(connection.peer));
  return Answer{wire::encode_reply(to, wire::SessionOpenReply{session->token, to_hex(env_.boot_id)}), {}};
}

Result<FdSocket::Answer> FdSocket::offer_file(Session& session, const wire::ReplyTo& to, std::vector<Fd>& descriptors) {
  if (descriptors.size() != 1) {
    return fail(ErrorCode::kInvalidArgument,
                "file.offer takes exactly one descriptor, and got " + std::to_string(descriptors.size()));
  }
  const auto how = env_.os.open_flags(descriptors.front().get());
  if (!how) return fail_errno(how.error().number, "looking at the descriptor");
  if ((*how & (O_ACCMODE | O_PATH)) != O_RDONLY) {
    return fail(ErrorCode::kInvalidArgument, "file.offer takes a descriptor that is open for reading only");
  }
  const uid_t uid = session.peer.uid;
  const std::size_t share = Gate::get().share();
  const bool too_many = !workers_.rights.everything(uid) && workers_.sessions.offers_of(uid) >= share;
  if (too_many || Gate::get().in_reserve(descriptors.front().get())) {
    return fail(ErrorCode::kResourceExhausted,
                "the broker has hardly any descriptors left: use the files that were offered, or raise its limit "
                "(ulimit -n)");
  }
  MODELBROKER_ASSIGN(const std::string handle,
                     Sessions::offer(session, std::move(descriptors.front()), env_.clock.now(),
                                     std::min(share, Sessions::kMostOffers)));
  if (!std::exchange(expiring_, true)) loop_.after(Sessions::kOfferLifetime, [this] { expire_offers(); });
  return Answer{wire::encode_reply(to, wire::FileOfferReply{handle}), {}};
}

// One timer for the offers of all sessions.
void FdSocket::expire_offers() {
  const TimePoint now = env_.clock.now();
  const auto next = workers_.sessions.expire_offers(now);
  expiring_ = next.has_value();
  if (next) loop_.after(std::max(*next - now, kBetweenExpiries), [this] { expire_offers(); });
}

Result<FdSocket::Answer> FdSocket::open_block(const Session& session, const wire::Request& request) {
  MODELBROKER_ASSIGN(const auto data, request.data<wire::BlockOpen>());
  const RamBlock* const block = ram_.blocks.find(data.block);
  if (block == nullptr || !workers_.leases.holds(session.id, data.block)) {
    return fail(ErrorCode::kNotFound,
                "this session holds no lease on a block '" + printable(data.block, 128) + "': attach first");
  }
  // An open of our own file on tmpfs: nothing that could hang.
  MODELBROKER_ASSIGN(auto descriptor, block->block->open_for_reader(env_.os));
  return Answer{wire::encode_reply(request.reply_to(), wire::BlockOpenReply{block->block->header().layout.block_size}),
                std::move(descriptor)};
}

}  // namespace modelbroker
