#include "broker/doors/router.h"

#include <algorithm>
#include <charconv>
#include <zmq.hpp>

#include "broker/base/log.h"
#include "broker/doors/private_bind.h"

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

// A request, as it came in.
struct Router::Asked {
  wire::ReplyTo to;
  SessionId session = 0;
  std::string id{};  // by which a repeat finds it; empty: none does
  std::vector<std::string> route;
  std::optional<std::chrono::milliseconds> deadline{};
};

// A request that came over this socket. Dropped without an answer, it answers itself with an error.
class Router::OpenCall final : public Call {
 public:
  OpenCall(Router& router, Asked asked)
      : Call(asked.deadline ? std::optional(router.loop_.clock().now() + *asked.deadline) : std::nullopt),
        router_(router),
        to_(std::move(asked.to)),
        session_(asked.session),
        id_(std::move(asked.id)),
        routes_{std::move(asked.route)} {
    router_.open_.insert(this);
  }
  ~OpenCall() override {
    drop();
    router_.open_.erase(this);
  }
  OpenCall(const OpenCall&) = delete;
  OpenCall& operator=(const OpenCall&) = delete;

  [[nodiscard]] SessionId session() const noexcept { return session_; }
  [[nodiscard]] const std::string& id() const noexcept { return id_; }
  void set_timer(const TimerId& timer) { timer_ = timer; }
  void passed(std::chrono::milliseconds deadline) {
    late({ErrorCode::kDeadlineExceeded, "not done within the deadline of " + std::to_string(deadline.count()) + " ms"});
  }
  // Asked again: the same answer goes there too.
  void join(const std::vector<std::string>& route) {
    if (std::ranges::find(routes_, route) == routes_.end()) routes_.push_back(route);
  }
  // Nobody will answer it any more.
  void drop() {
    if (answered()) return;
    finish(tl::unexpected(
        router_.stopping_
            ? Error{ErrorCode::kUnavailable, "the broker is stopping: start it again and retry", {{"stopping", 1}}}
            : Error{ErrorCode::kInternal, "the broker dropped the request: please report it"}));
  }

 private:
  void send(const Result<wire::AnyReply>& answer) override {
    if (timer_) router_.loop_.cancel(*timer_);
    const std::string bytes = answer ? wire::encode_reply(to_, *answer) : wire::encode_error(to_, answer.error());
    if (const auto running = router_.running_.find(session_); running != router_.running_.end() && !id_.empty()) {
      running->second.erase(id_);
      if (is_change()) router_.replies_.add(session_, id_, bytes);
    }
    // Sent last: on a busy machine libzmq's thread and the peer run only once we wait.
    for (const auto& route : routes_) router_.send(route, bytes);
  }

  Router& router_;
  wire::ReplyTo to_;
  SessionId session_;
  std::string id_;
  std::vector<std::vector<std::string>> routes_;  // who waits: more than one after a repeat
  std::optional<TimerId> timer_;
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

Result<void> Router::listen() { return bind_private(socket_->router, endpoint_); }

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
  Asked asked{.to = request->reply_to(), .session = (*session)->id, .route = route};
  if (!(*session)->token.empty() && asked.to.version >= 2) {
    asked.id = std::get<std::string>(asked.to.id);
    if (joins(asked.session, asked.id, route)) return;
  }
  if (request->deadline_ms() > 0) {
    const auto most = static_cast<std::uint64_t>(std::chrono::milliseconds(std::chrono::hours(24)).count());
    asked.deadline = std::chrono::milliseconds(std::min(request->deadline_ms(), most));
  }
  dispatch_(**session, *request, open(std::move(asked)));
}

std::shared_ptr<Call> Router::open(Asked asked) {
  const auto deadline = asked.deadline;
  const auto call = std::make_shared<OpenCall>(*this, std::move(asked));
  if (!call->id().empty()) running_[call->session()][call->id()] = call;
  if (deadline) {
    call->set_timer(loop_.after(*deadline, [weak = std::weak_ptr(call), delay = *deadline] {
      if (const auto still_open = weak.lock()) still_open->passed(delay);
    }));
  }
  return call;
}

bool Router::joins(SessionId session, const std::string& id, const std::vector<std::string>& route) {
  if (const std::string* const reply = replies_.find(session, id)) {
    send(route, *reply);
    return true;
  }
  Running& running = running_[session];
  const auto found = running.find(id);
  if (found == running.end()) return false;
  const auto call = found->second.lock();
  if (!call) return false;
  call->join(route);
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

void Router::forget(SessionId session) {
  running_.erase(session);
  replies_.forget(session);
}

void Router::stopping() {
  stopping_ = true;
  socket_->router.set(zmq::sockopt::linger, 200);  // ms: the last replies may leave
  for (OpenCall* const call : std::unordered_set(open_)) call->drop();
}

void Router::leave() {
  socket_->router.close();
  socket_->context.close();
}

}  // namespace modelbroker
