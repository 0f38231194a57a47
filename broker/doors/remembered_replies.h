// RememberedReplies: what requests that change something were answered, for those who ask again.
//
// One bound for the whole broker. Past it the session that holds the most loses its oldest, so one session that asks a
// lot pushes out its own answers and not another's. Threads: the loop's only.
#pragma once

#include <cstddef>
#include <deque>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>

#include "broker/workers/sessions.h"

namespace modelbroker {

class RememberedReplies {
 public:
  static constexpr std::size_t kMostBytes = std::size_t{4} << 20;
  static constexpr std::size_t kEntryBytes = 200;  // what one takes besides its id and its reply

  explicit RememberedReplies(std::size_t most = kMostBytes) : most_(most) {}

  // The first reply to a request stays.
  void add(SessionId session, const std::string& request_id, const std::string& reply);
  // Null: there is none, or it was forgotten.
  [[nodiscard]] const std::string* find(SessionId session, const std::string& request_id) const;
  void forget(SessionId session);
  [[nodiscard]] std::size_t bytes() const noexcept { return bytes_; }

 private:
  struct OfSession {
    std::unordered_map<std::string, std::string> replies;  // by request id
    std::deque<std::string> order;                         // request ids, oldest first
    std::size_t bytes = 0;
  };
  void resize(SessionId id, OfSession& session, std::size_t bytes);
  void forget_oldest();

  const std::size_t most_;
  std::unordered_map<SessionId, OfSession> sessions_;
  std::set<std::pair<std::size_t, SessionId>> by_bytes_;
  std::size_t bytes_ = 0;
};

}  // namespace modelbroker
