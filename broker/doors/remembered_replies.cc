#include "broker/doors/remembered_replies.h"

namespace modelbroker {
namespace {

std::size_t bytes_of(const std::string& request_id, const std::string& reply) {
  return RememberedReplies::kEntryBytes + request_id.size() + reply.size();
}

}  // namespace

void RememberedReplies::add(SessionId session, const std::string& request_id, const std::string& reply) {
  OfSession& its = sessions_[session];
  if (!its.replies.emplace(request_id, reply).second) return;
  its.order.push_back(request_id);
  resize(session, its, its.bytes + bytes_of(request_id, reply));
  while (bytes_ > most_) forget_oldest();
}

const std::string* RememberedReplies::find(SessionId session, const std::string& request_id) const {
  const auto its = sessions_.find(session);
  if (its == sessions_.end()) return nullptr;
  const auto reply = its->second.replies.find(request_id);
  return reply == its->second.replies.end() ? nullptr : &reply->second;
}

void RememberedReplies::forget(SessionId session) {
  const auto its = sessions_.find(session);
  if (its == sessions_.end()) return;
  resize(session, its->second, 0);
  sessions_.erase(its);
}

void RememberedReplies::resize(SessionId id, OfSession& session, std::size_t bytes) {
  by_bytes_.erase({session.bytes, id});
  bytes_ = bytes_ - session.bytes + bytes;
  session.bytes = bytes;
  if (bytes > 0) by_bytes_.emplace(bytes, id);
}

// The oldest of the session that holds the most.
void RememberedReplies::forget_oldest() {
  const SessionId id = by_bytes_.rbegin()->second;
  OfSession& session = sessions_.at(id);
  const auto oldest = session.replies.find(session.order.front());
  resize(id, session, session.bytes - bytes_of(oldest->first, oldest->second));
  session.replies.erase(oldest);
  session.order.pop_front();
  if (session.order.empty()) sessions_.erase(id);
}

}  // namespace modelbroker
