// Router: the ZeroMQ socket: requests in, replies out, each request answered exactly once.
//
// It knows frames, repeats and deadlines, and nothing of models. Every send is non-blocking: a reply that
// a peer does not take is lost, and asked for again. Threads: the loop's only.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "broker/base/loop.h"
#include "broker/doors/remembered_replies.h"
#include "broker/workers/sessions.h"
#include "wire/frame.h"

namespace modelbroker {

// A request on its way to its answer. The last holder answers `internal` (or `unavailable`) if nobody else did.
class OpenRequest;
using Ticket = std::shared_ptr<OpenRequest>;

// The typed side of a ticket: what handlers get. Copies share the one answer; later answers are dropped.
template <class M>
class Reply {
 public:
  explicit Reply(Ticket ticket) : ticket_(std::move(ticket)) {}
  void ok(const M& message) const;
  void error(const Error& error) const;
  // Nobody waits any more (the deadline passed): what would only be for the asker need not be done.
  [[nodiscard]] bool answered() const noexcept;
  // Until when the asker waits, if it said so.
  [[nodiscard]] std::optional<TimePoint> deadline() const noexcept;
  // `give_up` is called once the deadline has passed without an answer, on the loop's thread.
  void on_late(std::function<void()> give_up) const;
  void send(const Result<M>& result) const { result ? ok(*result) : error(result.error()); }

 private:
  Ticket ticket_;
};

class Router {
 public:
  // The kernel's word on the sender of a message, from Peer-Address.
  struct Sender {
    Peer peer;
    std::string route;
    int socket = -1;  // the connection it came over: only to be asked, it may be another's by now
  };
  // Finds the session that a request belongs to, or says why there is none.
  using FindSession = std::function<Result<Session*>(const wire::Request&, const Sender&)>;
  using Dispatch = std::function<void(Session&, const wire::Request&, Ticket)>;

  // Binds; the caller holds the run directory's lock (a second bind would steal the path).
  [[nodiscard]] static Result<std::unique_ptr<Router>> bind(Loop& loop, const std::string& endpoint,
                                                            FindSession find_session, Dispatch dispatch);
  ~Router();
  // Binds, also once more when the socket's file was removed. Connected peers stay so, and the old listener with them:
  // libzmq's unbind would end its connections. So each time costs a descriptor.
  [[nodiscard]] Result<void> listen();
  Router(const Router&) = delete;
  Router& operator=(const Router&) = delete;

  // Answers to a session that has ended are not sent or remembered.
  void forget(SessionId session);
  // The broker stops: tells everybody who still waits.
  void stopping();
  // Closes the socket and waits until the last replies have left, but destroys nothing that others may still name.
  void leave();

 private:
  friend class OpenRequest;
  struct Socket;
  using Running = std::unordered_map<std::string, std::weak_ptr<OpenRequest>>;  // by request id

  Router(Loop& loop, std::string endpoint, FindSession find_session, Dispatch dispatch);
  bool receive_one();
  void handle(const std::vector<std::string>& route, std::string_view bytes, const Sender& sender);
  bool joins(SessionId session, const std::string& id, const std::vector<std::string>& route);
  void send(const std::vector<std::string>& route, std::string_view bytes);
  void answered(OpenRequest& request, const std::string& bytes);

  Loop& loop_;
  const std::string endpoint_;
  FindSession find_session_;
  Dispatch dispatch_;
  std::unique_ptr<Socket> socket_;
  std::unordered_map<SessionId, Running> running_;
  RememberedReplies replies_;
  std::unordered_set<OpenRequest*> open_;
  bool stopping_ = false;
};

class OpenRequest {
 public:
  OpenRequest(Router& router, wire::ReplyTo to);
  OpenRequest(const OpenRequest&) = delete;
  OpenRequest& operator=(const OpenRequest&) = delete;
  ~OpenRequest();

  [[nodiscard]] const wire::ReplyTo& to() const noexcept { return to_; }
  // It changes something: who asks again gets the same answer, and nothing is done twice.
  void remember_answer() noexcept { is_change_ = true; }
  void answer(const std::string& bytes);
  [[nodiscard]] bool answered() const noexcept { return answered_; }
  [[nodiscard]] std::optional<TimePoint> deadline() const noexcept {
    return deadline_ ? std::optional(deadline_->first) : std::nullopt;
  }

 private:
  template <class M>
  friend class Reply;
  friend class Router;
  void late(std::chrono::milliseconds deadline);
  void drop();
  Router& router_;
  wire::ReplyTo to_;
  std::vector<std::vector<std::string>> routes_;  // who waits: more than one after a repeat
  SessionId session_ = 0;
  std::string id_;  // by which a repeat finds it; empty: none does
  bool is_change_ = false;
  std::optional<TimerId> deadline_;
  std::function<void()> on_late_;
  bool answered_ = false;
};

template <class M>
bool Reply<M>::answered() const noexcept {
  return ticket_->answered();
}

template <class M>
std::optional<TimePoint> Reply<M>::deadline() const noexcept {
  return ticket_->deadline();
}

template <class M>
void Reply<M>::on_late(std::function<void()> give_up) const {
  ticket_->on_late_ = std::move(give_up);
}

template <class M>
void Reply<M>::ok(const M& message) const {
  ticket_->answer(wire::encode_reply(ticket_->to(), message));
}
template <class M>
void Reply<M>::error(const Error& error) const {
  ticket_->answer(wire::encode_error(ticket_->to(), error));
}

}  // namespace modelbroker
