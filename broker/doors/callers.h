// Callers: who a request over the ROUTER comes from: a session by its token, or a process that speaks ZeroMQ alone.
//
// A session of the second kind ends when the kernel says that its process is dead, or, where the kernel cannot say
// that, by silence. Threads: the loop's only.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <utility>

#include "broker/base/environment.h"
#include "broker/base/event_sink.h"
#include "broker/base/loop.h"
#include "broker/doors/router.h"
#include "broker/workers/workers.h"

namespace modelbroker {

class Callers {
 public:
  struct Sessions {
    std::function<void(SessionId)> end;
    std::function<bool(SessionId)> wait;  // for a load: who waits is not silent
  };
  // `fds`: where sessions are opened, for the refusal of a token that is not known.
  Callers(const Environment& env, Workers& workers, Loop& loop, EventSink& events, std::string fds, Sessions sessions)
      : env_(env),
        workers_(workers),
        loop_(loop),
        events_(events),
        fds_(std::move(fds)),
        sessions_(std::move(sessions)) {}

  // failed_precondition for a token that is not known, permission_denied for a user who is not served.
  [[nodiscard]] Result<Session*> find(const wire::Request& request, const Router::Sender& sender);
  void ended(SessionId session);
  // From now on, again and again.
  void end_silent();

 private:
  void add_groups(Peer& peer, int socket) const;
  void watch(const Session& session);

  const Environment& env_;
  Workers& workers_;
  Loop& loop_;
  EventSink& events_;
  const std::string fds_;
  const Sessions sessions_;
  std::map<SessionId, std::pair<Fd, WatchId>> watched_;  // ZeroMQ-only ones, by their pidfd
};

}  // namespace modelbroker
