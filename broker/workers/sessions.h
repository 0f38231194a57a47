// Sessions: who talks to the broker, as the kernel told it.
//
// A session comes from a connection to the fd socket (it has a token) or stands for a ZeroMQ-only
// process (it has none). It owns what its peer handed in; its leases are in the LeaseBook.
// Threads: the broker's only.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>

#include "broker/base/clock.h"
#include "broker/workers/lease_numbers.h"
#include "broker/workers/peer.h"
#include "shm/error.h"
#include "shm/fd.h"

namespace modelbroker {

using SessionId = std::uint64_t;

// A file that a peer handed in, until a request uses it.
struct FileOffer {
  Fd file;
  TimePoint expires;
};

struct Session {
  SessionId id = 0;
  std::string token;  // empty: ZeroMQ-only
  Peer peer;
  std::string plain_key;  // ZeroMQ-only: what it is found by
  TimePoint last_heard;
  LeaseNumbers lease_numbers;
  std::set<std::uint64_t> attaching;  // numbers of leases whose attach waits for a load
  std::uint64_t next_offer = 1;
  std::map<std::uint64_t, FileOffer> offers;  // by number, until used; the first expires first
};

class Sessions {
 public:
  static constexpr std::size_t kMost = 10000;
  static constexpr std::size_t kMostOffers = 1100;  // unused, of a session: a model of 1,024 files and some more
  static constexpr std::chrono::seconds kOfferLifetime{30};

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

  // Keeps a descriptor until it is used or expires, and gives its handle. resource_exhausted: the session has `most`.
  [[nodiscard]] static Result<std::string> offer(Session& session, Fd file, TimePoint now,
                                                 std::size_t most = kMostOffers);
  // Takes it out; not_found for a handle that is used up, has expired, or was never given.
  [[nodiscard]] static Result<Fd> take_offer(Session& session, const std::string& handle, TimePoint now);
  // Closes the offers that have expired; when the next one will.
  std::optional<TimePoint> expire_offers(TimePoint now);

 private:
  std::unordered_map<SessionId, Session> sessions_;
  std::unordered_map<std::string, SessionId> by_token_, by_plain_key_;
  SessionId next_ = 1;
};

}  // namespace modelbroker
