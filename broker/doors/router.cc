#include "broker/doors/router.h"

#include <sys/stat.h>

#include <algorithm>
#include <charconv>
#include <zmq.hpp>

#include "broker/base/log.h"

namespace modelbroker {
namespace {

constexpr int kBacklog = 1024;  // who waits there is not refused

// "localhost:<uid>:<gid>:<pid>", as libzmq writes it from SO_PEERCRED on ipc (stream_engine_base.cpp).
std::optional<Peer> peer_of(zmq::message_t& message) {
  const char* text = nullptr;
  try {
    text = message.gets("Peer-Address");
  } catch (const zmq::error_t&) {
    return std::nullopt;
  }
  std::vector<std::uint64_t> numbers;
  std::string_view rest = text;
  while (!rest.empty()) {
    const auto colon = rest.find(':');
    const std::string_view word = rest.substr(0, colon);
    std::uint64_t number = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), number);
    if (error == std::errc() && end == word.data() + word.size()) numbers.push_back(number);
    rest = colon == std::string_view::npos ? std::string_view() : rest.substr(colon + 1);
  }
  if (numbers.size() != 3) return std::nullopt;
  return Peer{static_cast<uid_t>(numbers[0]), static_cast<pid_t>(numbers[2]), {static_cast<gid_t>(numbers[1])}};
}

}  // namespace

struct Router::Socket {
  zmq::context_t context{1};
  zmq::socket_t router{context, zmq::socket_type::router};
};

Router::Router(Loop& loop, std::string endpoint, FindSession find_session, Dispatch dispatch)
    : loop_(loop),
      endpoint_(std::move(endpoint)),
      find_session_(std::move(find_session)),
      dispatch_(std::move(dispatch)),
      socket_(std::make_unique<Socket>()) {}

Router::~Router() { loop_.set_messages(-1, nullptr); }

Result<std::unique_ptr<Router>> Router::bind(Loop& loop, const std::string& endpoint, FindSession find_session,
                                             Dispatch dispatch) {
  try {
    std::unique_ptr<Router> router(new Router(loop, endpoint, std::move(find_session), std::move(dispatch)));
    zmq::socket_t& socket = router->socket_->router;
    socket.set(zmq::sockopt::linger, 0);
    socket.set(zmq::sockopt::maxmsgsize, static_cast<std::int64_t>(wire::kMessageLimit));
    socket.set(zmq::sockopt::handshake_ivl, 2000);
    socket.set(zmq::sockopt::backlog, kBacklog);
    MODELBROKER_TRY(router->listen());
    loop.set_messages(socket.get(zmq::sockopt::fd), [raw = router.get()] { return raw->receive_one(); });
    return router;
  } catch (const zmq::error_t& error) {
    return fail_errno(error.num(), "binding " + endpoint);
  }
}

Result<void> Router::listen() {
  const mode_t before = ::umask(0177);  // the socket's file is 0600 from its first moment
  const int failed = ::zmq_bind(socket_->router.handle(), endpoint_.c_str()) == 0 ? 0 : ::zmq_errno();
  ::umask(before);
  if (failed != 0) return fail_errno(failed, "binding " + endpoint_);
  return {};
}

bool Router::receive_one() {
  std::vector<std::string> route;
  zmq::message_t frame;
  try {
    if (!socket_->router.recv(frame, zmq::recv_flags::dontwait)) return false;
    while (frame.more()) {
      // Identity, then an empty frame if a REQ sent it; longer envelopes are not ours.
      if (route.size() < 3) route.push_back(frame.to_string());
      (void)socket_->router.recv(frame, zmq::recv_flags::none);
    }
    const std::optional<Peer> peer = peer_of(frame);
    if (route.empty() || route.size() > 2 || (route.size() == 2 && !route[1].empty()) || !peer) {
      log_debug("a message with an envelope that is not ours was dropped");
      return true;
    }
    handle(route, frame.to_string_view(), {*peer, route.front(), frame.get(ZMQ_SRCFD)});
  } catch (const zmq::error_t& error) {
    if (error.num() == ETERM || error.num() == ENOTSOCK) return false;
    log_warning(std::string("receiving a message: ") + error.what());
  }
  return true;
}

void Router::handle(const std::vector<std::string>& route, std::string_view bytes, const Sender& sender) {
  wire::ReplyTo to;
  auto request = wire::Request::decode(bytes, wire::kMessageLimit, &to);
  if (!request) {
    log_debug("a message from uid " + std::to_string(sender.peer.uid) + ", pid " + std::to_string(sender.peer.pid) +
              " was refused: " + request.error().message);
    send(route, wire::encode_error(to, request.error()));
    return;
  }
  const auto session = find_session_(*request, sender);
  if (!session) {
    send(route, wire::encode_error(request->reply_to(), session.error()));
    return;
  }
  const SessionId id = (*session)->id;
  auto ticket = std::make_shared<OpenRequest>(*this, request->reply_to());
  if (!(*session)->token.empty() && request->reply_to().version >= 2) {
    ticket->id_ = std::get<std::string>(request->reply_to().id);
    if (joins(id, ticket->id_, route)) {
      ticket->answered_ = true;
      return;
    }
    running_[id][ticket->id_] = ticket;
  }
  ticket->session_ = id;
  ticket->routes_.push_back(route);
  if (request->deadline_ms() > 0) {
    const auto most = static_cast<std::uint64_t>(std::chrono::milliseconds(std::chrono::hours(24)).count());
    const std::chrono::milliseconds delay(std::min(request->deadline_ms(), most));
    ticket->deadline_ = loop_.after(delay, [weak = std::weak_ptr<OpenRequest>(ticket), delay] {
      if (const Ticket open = weak.lock()) open->late(delay);
    });
  }
  dispatch_(**session, *request, std::move(ticket));
}

bool Router::joins(SessionId session, const std::string& id, const std::vector<std::string>& route) {
  if (const std::string* const reply = replies_.find(session, id)) {
    send(route, *reply);
    return true;
  }
  Running& running = running_[session];
  const auto found = running.find(id);
  if (found == running.end()) return false;
  const Ticket ticket = found->second.lock();
  if (!ticket) return false;
  if (std::ranges::find(ticket->routes_, route) == ticket->routes_.end()) ticket->routes_.push_back(route);
  return true;
}

void Router::send(const std::vector<std::string>& route, std::string_view bytes) {
  try {
    for (const std::string& frame : route) {
      if (!socket_->router.send(zmq::buffer(frame), zmq::send_flags::dontwait | zmq::send_flags::sndmore)) return;
    }
    (void)socket_->router.send(zmq::buffer(bytes), zmq::send_flags::dontwait);
  } catch (const zmq::error_t& error) {
    log_debug(std::string("a reply was not taken: ") + error.what());
  }
}

void Router::answered(OpenRequest& request, const std::string& bytes) {
  if (request.deadline_) loop_.cancel(*request.deadline_);
  if (const auto running = running_.find(request.session_); running != running_.end() && !request.id_.empty()) {
    running->second.erase(request.id_);
    if (request.is_change_) replies_.add(request.session_, request.id_, bytes);
  }
  // Sent last: on a busy machine libzmq's thread and the peer run only once we wait.
  for (const auto& route : request.routes_) send(route, bytes);
}

void Router::forget(SessionId session) {
  running_.erase(session);
  replies_.forget(session);
}

void Router::stopping() {
  stopping_ = true;
  socket_->router.set(zmq::sockopt::linger, 200);  // ms: the last replies may leave
  for (OpenRequest* const request : std::unordered_set(open_)) request->drop();
}

void Router::leave() {
  socket_->router.close();
  socket_->context.close();
}

OpenRequest::OpenRequest(Router& router, wire::ReplyTo to) : router_(router), to_(std::move(to)) {
  router_.open_.insert(this);
}

OpenRequest::~OpenRequest() { drop(); }

void OpenRequest::late(std::chrono::milliseconds deadline) {
  answer(wire::encode_error(to_, {ErrorCode::kDeadlineExceeded,
                                  "not done within the deadline of " + std::to_string(deadline.count()) + " ms"}));
  if (on_late_) on_late_();
}

// Nobody will answer it any more.
void OpenRequest::drop() {
  if (answered_) {
    router_.open_.erase(this);
    return;
  }
  const Error error =
      router_.stopping_
          ? Error{ErrorCode::kUnavailable, "the broker is stopping: start it again and retry", {{"stopping", 1}}}
          : Error{ErrorCode::kInternal, "the broker dropped the request: please report it"};
  answer(wire::encode_error(to_, error));
}

void OpenRequest::answer(const std::string& bytes) {
  if (std::exchange(answered_, true)) return;
  router_.open_.erase(this);
  router_.answered(*this, bytes);
}

}  // namespace modelbroker
