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

#include "broker/api/call.h"
#include "broker/base/loop.h"
#include "broker/doors/remembered_replies.h"
#include "broker/workers/sessions.h"
#include "wire/frame.h"

namespace modelbroker {

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
  using Dispatch = std::function<void(Session&, const wire::Request&, std::shared_ptr<Call>)>;

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
  struct Socket;
  class OpenCall;
  struct Asked;
  using Running = std::unordered_map<std::string, std::weak_ptr<OpenCall>>;  // by request id

  Router(Loop& loop, std::string endpoint, FindSession find_session, Dispatch dispatch);
  bool receive_one();
  void handle(const std::vector<std::string>& route, std::string_view bytes, const Sender& sender);
  [[nodiscard]] std::shared_ptr<Call> open(Asked asked);
  bool joins(SessionId session, const std::string& id, const std::vector<std::string>& route);
  void send(const std::vector<std::string>& route, std::string_view bytes);

  Loop& loop_;
  const std::string endpoint_;
  FindSession find_session_;
  Dispatch dispatch_;
  std::unique_ptr<Socket> socket_;
  std::unordered_map<SessionId, Running> running_;
  RememberedReplies replies_;
  std::unordered_set<OpenCall*> open_;
  bool stopping_ = false;
};

}  // namespace modelbroker
