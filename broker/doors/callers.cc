#include "broker/doors/callers.h"

#include <sys/epoll.h>

#include <vector>

#include "broker/models/model_events.h"

namespace modelbroker {

Result<Session*> Callers::find(const wire::Request& request, const Router::Sender& sender) {
  const TimePoint now = env_.clock.now();
  if (!request.session().empty()) {
    Session* const session = workers_.sessions.find_token(request.session());
    if (session == nullptr || session->peer.uid != sender.peer.uid) {
      return fail(ErrorCode::kFailedPrecondition,
                  "the session is not known here (it ended, or the broker was restarted): open one at " + fds_,
                  {{"unknown_session", 1}});
    }
    session->last_heard = now;
    return session;
  }
  Peer peer = sender.peer;
  if (!workers_.rights.everything(peer.uid)) add_groups(peer, sender.socket);
  if (!workers_.rights.enter(peer)) return tl::unexpected(workers_.rights.not_served(peer.uid));
  MODELBROKER_ASSIGN(const auto plain, workers_.sessions.plain(peer, sender.route, now));
  if (plain.is_new) {
    events_.publish("session.opened", event_of(plain.session->peer));
    watch(*plain.session);
  }
  return plain.session;
}

// By the connection that the request came over, if it is still there and still that process's.
void Callers::add_groups(Peer& peer, int socket) const {
  const auto now = env_.os.peer_credentials(socket);
  if (!now || now->uid != peer.uid || now->pid != peer.pid) return;
  const auto groups = env_.os.peer_groups(socket);
  if (groups) peer.groups.insert(peer.groups.end(), groups->begin(), groups->end());
}

void Callers::watch(const Session& session) {
  if (session.peer.pid <= 0) return;
  auto pidfd = env_.os.pidfd_open(session.peer.pid);
  if (!pidfd) return;  // silence alone must do
  auto watching = loop_.watch(pidfd->get(), EPOLLIN, [this, id = session.id](std::uint32_t) { sessions_.end(id); });
  if (watching) watched_.emplace(session.id, std::pair(std::move(*pidfd), *watching));
}

void Callers::ended(SessionId session) {
  const auto found = watched_.find(session);
  if (found == watched_.end()) return;
  loop_.unwatch(found->second.second);
  watched_.erase(found);
}

// ZeroMQ-only peers whose death the kernel cannot tell us end by silence. Who waits for a load is not silent.
void Callers::end_silent() {
  const TimePoint now = env_.clock.now();
  std::vector<SessionId> silent;
  for (const auto& [id, session] : workers_.sessions.all()) {
    if (!session.token.empty() || watched_.contains(id)) continue;
    if (sessions_.wait(id)) {
      workers_.sessions.find(id)->last_heard = now;
    } else if (session.last_heard + env_.config.hung < now) {
      silent.push_back(id);
    }
  }
  for (const SessionId id : silent) sessions_.end(id);
  loop_.after(env_.config.hung / 4, [this] { end_silent(); });
}

}  // namespace modelbroker
