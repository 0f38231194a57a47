#include "broker/workers/sessions.h"

#include <algorithm>

namespace modelbroker {
namespace {
std::string handle_of(std::uint64_t offer) { return "f" + std::to_string(offer); }
}  // namespace

Result<Session*> Sessions::open(Peer peer, std::string token, TimePoint now) {
  if (sessions_.size() >= kMost) {
    return fail(ErrorCode::kResourceExhausted,
                "the broker has " + std::to_string(kMost) + " open sessions: close some");
  }
  const SessionId id = next_++;
  Session& session = sessions_[id];
  session.id = id;
  session.peer = std::move(peer);
  session.token = std::move(token);
  session.last_heard = now;
  if (!session.token.empty()) by_token_[session.token] = id;
  return &session;
}

Result<Sessions::Plain> Sessions::plain(const Peer& peer, const std::string& route, TimePoint now) {
  // One session a process: a worker that connects again finds its leases.
  const std::string key =
      std::to_string(peer.uid) + ":" + (peer.pid != 0 ? std::to_string(peer.pid) : "route:" + route);
  if (const auto found = by_plain_key_.find(key); found != by_plain_key_.end()) {
    Session& session = sessions_.at(found->second);
    session.last_heard = now;
    return Plain{&session, false};
  }
  MODELBROKER_ASSIGN(Session* const session, open(peer, "", now));
  session->plain_key = key;
  by_plain_key_[key] = session->id;
  return Plain{session, true};
}

Session* Sessions::find(SessionId id) {
  const auto found = sessions_.find(id);
  return found == sessions_.end() ? nullptr : &found->second;
}

Session* Sessions::find_token(const std::string& token) {
  const auto found = by_token_.find(token);
  return found == by_token_.end() ? nullptr : find(found->second);
}

void Sessions::close(SessionId id) {
  const auto found = sessions_.find(id);
  if (found == sessions_.end()) return;
  if (!found->second.token.empty()) by_token_.erase(found->second.token);
  if (!found->second.plain_key.empty()) by_plain_key_.erase(found->second.plain_key);
  sessions_.erase(found);
}

std::size_t Sessions::offers_of(uid_t uid) const {
  std::size_t count = 0;
  for (const auto& [id, session] : sessions_) count += session.peer.uid == uid ? session.offers.size() : 0;
  return count;
}

std::string Sessions::offer(Session& session, Fd file) {
  if (session.offers.size() >= kMostOffers) session.offers.erase(session.offers.begin());
  const std::uint64_t number = session.next_offer++;
  session.offers.emplace(number, std::move(file));
  return handle_of(number);
}

Result<Fd> Sessions::take_offer(Session& session, const std::string& handle) {
  const auto found =
      std::ranges::find_if(session.offers, [&](const auto& offer) { return handle_of(offer.first) == handle; });
  if (found == session.offers.end()) {
    return fail(ErrorCode::kNotFound,
                "the file handle is used up or was never given: send the descriptor with file.offer");
  }
  Fd file = std::move(found->second);
  session.offers.erase(found);
  return file;
}

}  // namespace modelbroker
