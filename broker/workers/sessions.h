// Sessions: who talks to the broker, as the kernel told it.
//
// A session comes from a connection to the fd socket (it has a token) or stands for a ZeroMQ-only
// process (it has none). It owns what its peer handed in; its leases are in the LeaseBook.
// Threads: the broker's only.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <string>
#include <unordered_map>

#include "broker/clock.h"
#include "broker/workers/peer.h"
#include "shm/error.h"
#include "shm/fd.h"

namespace modelbroker {

using SessionId = std::uint64_t;

struct Session {
  SessionId id = 0;
  std::string token;  // empty: ZeroMQ-only
  Peer peer;
  std::string plain_key;  // ZeroMQ-only: what it is found by
  TimePoint last_heard;
  std::uint64_t next_lease = 1;
  std::uint64_t next_offer = 1;
  std::map<std::uint64_t, Fd> offers;  // by number, until used
};

class Sessions {
 public:
  static constexpr std::size_t kMost = 10000;
  static constexpr std::size_t kMostOffers = 64;

  // resource_exhausted when there are too many.
  [[nodiscard]] Result<Session*> open(Peer peer, std::string token, TimePoint now);
  // The session of a ZeroMQ-only peer; made at its first request. `route` tells peers without a pid apart.
  struct Plain {
    Session* session = nullptr;
    bool is_new = false;
  };
  [[nodiscard]] Result<Plain> plain(const Peer& peer, const std::string& route, TimePoint now);

  [[nodiscard]] Session* find(SessionId id);
  [[nodiscard]] Session* find_token(const std::string& token);
  void close(SessionId id);  // idempotent
  [[nodiscard]] std::size_t size() const noexcept { return sessions_.size(); }
  // Descriptors that a user's sessions have offered and not used.
  [[nodiscard]] std::size_t offers_of(uid_t uid) const;
  [[nodiscard]] const std::unordered_map<SessionId, Session>& all() const noexcept { return sessions_; }

  // Keeps a descriptor until it is used, and gives its handle. Past kMostOffers the oldest goes: whoever offered it
  // has most likely given up (a call that timed out never hears its handle).
  [[nodiscard]] static std::string offer(Session& session, Fd file);
  // Takes it out; not_found for a handle that is used up or was never given.
  [[nodiscard]] static Result<Fd> take_offer(Session& session, const std::string& handle);

 private:
  std::unordered_map<SessionId, Session> sessions_;
  std::unordered_map<std::string, SessionId> by_token_, by_plain_key_;
  SessionId next_ = 1;
};

}  // namespace modelbroker
