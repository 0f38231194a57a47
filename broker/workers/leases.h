// LeaseBook: who has a right to which blocks.
//
// A lease is a session's right to the blocks of one attach; while it lives the bytes stay. Release, death,
// expiry and shutdown all end leases through end() and end_session(): idempotent, and nothing else does.
// Threads: the broker's only.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "broker/base/clock.h"
#include "broker/workers/sessions.h"

namespace modelbroker {

struct Lease {
  std::string model;
  std::vector<std::string> blocks;  // ids
  Peer peer;
  TimePoint since;
};

class LeaseBook {
 public:
  // Replaces a lease of the same session and number (a repeated restatement).
  void grant(SessionId session, std::uint64_t number, Lease lease);
  // The blocks that the lease held; empty if it had ended before.
  std::vector<std::string> end(SessionId session, std::uint64_t number);
  // The same for all leases of a session; how many ended, and which blocks they held.
  struct Ended {
    std::size_t leases = 0;
    std::vector<std::string> blocks;
  };
  Ended end_session(SessionId session);

  [[nodiscard]] const Lease* find(SessionId session, std::uint64_t number) const;
  [[nodiscard]] bool holds(SessionId session, const std::string& block) const;
  [[nodiscard]] std::size_t count(const std::string& block) const;
  [[nodiscard]] std::size_t total() const noexcept { return leases_.size(); }
  struct Holder {
    std::uint64_t number = 0;
    Peer peer;
    TimePoint since;
  };
  // Of any of these blocks, each lease once.
  [[nodiscard]] std::vector<Holder> holders(const std::vector<std::string>& blocks) const;

 private:
  using Key = std::pair<SessionId, std::uint64_t>;
  std::map<Key, Lease> leases_;
  std::unordered_map<std::string, std::set<Key>> by_block_;
};

}  // namespace modelbroker
