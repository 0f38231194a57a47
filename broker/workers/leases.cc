#include "broker/workers/leases.h"

#include <utility>

namespace modelbroker {

void LeaseBook::grant(SessionId session, std::uint64_t number, Lease lease) {
  end(session, number);
  const Key key(session, number);
  for (const std::string& block : lease.blocks) by_block_[block].insert(key);
  leases_.emplace(key, std::move(lease));
}

std::vector<std::string> LeaseBook::end(SessionId session, std::uint64_t number) {
  const Key key(session, number);
  const auto found = leases_.find(key);
  if (found == leases_.end()) return {};
  std::vector<std::string> blocks = std::move(found->second.blocks);
  leases_.erase(found);
  for (const std::string& block : blocks) {
    const auto holders = by_block_.find(block);
    if (holders == by_block_.end()) continue;
    holders->second.erase(key);
    if (holders->second.empty()) by_block_.erase(holders);
  }
  return blocks;
}

LeaseBook::Ended LeaseBook::end_session(SessionId session) {
  Ended ended;
  while (true) {
    const auto first = leases_.lower_bound({session, 0});
    if (first == leases_.end() || first->first.first != session) return ended;
    ++ended.leases;
    for (std::string& block : end(session, first->first.second)) ended.blocks.push_back(std::move(block));
  }
}

const Lease* LeaseBook::find(SessionId session, std::uint64_t number) const {
  const auto found = leases_.find({session, number});
  return found == leases_.end() ? nullptr : &found->second;
}

bool LeaseBook::holds(SessionId session, const std::string& block) const {
  const auto holders = by_block_.find(block);
  if (holders == by_block_.end()) return false;
  const auto first = holders->second.lower_bound({session, 0});
  return first != holders->second.end() && first->first == session;
}

std::size_t LeaseBook::count(const std::string& block) const {
  const auto holders = by_block_.find(block);
  return holders == by_block_.end() ? 0 : holders->second.size();
}

std::vector<LeaseBook::Holder> LeaseBook::holders(const std::vector<std::string>& blocks) const {
  std::set<Key> keys;
  for (const std::string& block : blocks) {
    const auto found = by_block_.find(block);
    if (found != by_block_.end()) keys.insert(found->second.begin(), found->second.end());
  }
  std::vector<Holder> list;
  for (const Key& key : keys) {
    const Lease& lease = leases_.at(key);
    list.push_back({key.second, lease.peer, lease.since});
  }
  return list;
}

}  // namespace modelbroker
