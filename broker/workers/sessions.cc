#include "broker/workers/sessions.h"

#include <charconv>

namespace modelbroker {
namespace {

std::string handle_of(std::uint64_t offer) { return "f" + std::to_string(offer); }

// 0, which no offer has, for what handle_of() did not make.
std::uint64_t number_of(const std::string& handle) {
  std::uint64_t number = 0;
  if (!handle.starts_with('f')) return 0;
  std::from_chars(handle.data() + 1, handle.data() + handle.size(), number);
  return handle_of(number) == handle ? number : 0;
}

void expire(Session& session, TimePoint now) {
  auto& offers = session.offers;
  while (!offers.empty() && offers.begin()->second.expires <= now) offers.erase(offers.begin());
}

std::string lifetime() { return std::to_string(Sessions::kOfferLifetime.count()) + " s"; }

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

Result<std::string> Sessions::offer(Session& session, Fd file, TimePoint now, std::size_t most) {
  expire(session, now);
  if (session.offers.size() >= most) {
    return fail(ErrorCode::kResourceExhausted,
                "the session has " + std::to_string(most) +
                    " file offers that no request has used, and may have no more: send the requests that name them, or "
                    "wait until the first expires, " +
                    lifetime() + " after it came");
  }
  const std::uint64_t number = session.next_offer++;
  session.offers.emplace(number, FileOffer{std::move(file), now + kOfferLifetime});
  return handle_of(number);
}

Result<Fd> Sessions::take_offer(Session& session, const std::string& handle, TimePoint now) {
  expire(session, now);
  const std::uint64_t number = number_of(handle);
  const auto found = session.offers.find(number);
  if (found == session.offers.end()) {
    const bool was_given = number > 0 && number < session.next_offer;
    return fail(ErrorCode::kNotFound, was_given
                                          ? "the file offer '" + handle + "' was used before, or has expired (after " +
                                                lifetime() + "): send the descriptor again with file.offer"
                                          : "the file handle was never given: send the descriptor with file.offer");
  }
  Fd file = std::move(found->second.file);
  session.offers.erase(found);
  return file;
}

std::optional<TimePoint> Sessions::expire_offers(TimePoint now) {
  std::optional<TimePoint> next;
  for (auto& [id, session] : sessions_) {
    expire(session, now);
    if (session.offers.empty()) continue;
    const TimePoint first = session.offers.begin()->second.expires;
    if (!next || first < *next) next = first;
  }
  return next;
}

}  // namespace modelbroker
