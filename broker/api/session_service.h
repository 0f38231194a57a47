// SessionService: session.hello, session.ping and session.bye.
//
// Threads: the loop's only.
#pragma once

#include <functional>
#include <utility>

#include "broker/api/call.h"
#include "broker/api/lease_service.h"
#include "broker/base/environment.h"
#include "broker/base/event_sink.h"
#include "wire/endpoint.h"

namespace modelbroker {

class SessionService {
 public:
  // `end` ends a session whose leases have ended, and its connection with it.
  SessionService(const Environment& env, const wire::Endpoint& endpoint, EventSink& events, LeaseService& leases,
                 std::function<void(const Session&)> end)
      : env_(env), endpoint_(endpoint), events_(events), leases_(leases), end_(std::move(end)) {}

  void hello(Session& session, const wire::Empty& data, const Reply<wire::SessionHelloReply>& reply);
  void ping(Session& session, const wire::Empty& data, const Reply<wire::SessionPingReply>& reply);
  void bye(Session& session, const wire::Empty& data, const Reply<wire::SessionByeReply>& reply);

 private:
  const Environment& env_;
  const wire::Endpoint& endpoint_;
  EventSink& events_;
  LeaseService& leases_;
  std::function<void(const Session&)> end_;
};

}  // namespace modelbroker
