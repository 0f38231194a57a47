// Session: one connection to the fd socket, and the life of all leases that are granted on it.
//
// Threads: any; request and reply are one step under a lock. Failure: `lost` errors (see is_lost) when the connection
// has ended or the broker does not know the session, deadline_exceeded (10 s at the latest: the broker answers all of
// this from its books), else what the broker answered.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cpp_client/deadline.h"
#include "shm/error.h"
#include "shm/fd.h"
#include "shm/os.h"
#include "wire/endpoint.h"
#include "wire/frame.h"

namespace modelbroker::client {

// The session is over; on another one the same request may go well.
[[nodiscard]] Error lost(std::string message);
[[nodiscard]] bool is_lost(const Error& error);

// A deadline_exceeded of our own: the broker has said nothing yet, and what was asked of it may still happen.
[[nodiscard]] Error unanswered(std::string message);
[[nodiscard]] bool is_unanswered(const Error& error);
// Ids that no other process uses.
[[nodiscard]] std::string random_prefix();

class Session {
 public:
  // Connects and opens a session. lost where nobody listens; permission_denied if it is not ours to use.
  [[nodiscard]] static Result<std::unique_ptr<Session>> open(Os& os, const wire::Endpoint& endpoint,
                                                             const Deadline& deadline);
  ~Session() = default;
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  [[nodiscard]] const std::string& token() const noexcept { return token_; }
  // For poll(): POLLRDHUP when the broker has gone away. Replies on it belong to their callers.
  [[nodiscard]] int descriptor() const noexcept { return socket_.get(); }
  [[nodiscard]] bool hung_up() const;
  // Ends it, and wakes whoever waits on it.
  void close() noexcept;

  // Hands in a file; the handle is good for one load or attach, and for 30 s.
  [[nodiscard]] Result<std::string> offer_file(const Fd& file, const Deadline& deadline);
  // A descriptor of a block that this session leases.
  [[nodiscard]] Result<Fd> open_block(const std::string& block, const Deadline& deadline);

 private:
  Session(Os& os, std::string path, Fd socket) : os_(os), path_(std::move(path)), socket_(std::move(socket)) {}
  template <class Reply, class M>
  [[nodiscard]] Result<std::pair<Reply, std::vector<Fd>>> exchange(std::string_view type, const M& data,
                                                                   const std::vector<int>& descriptors,
                                                                   const Deadline& deadline);

  Os& os_;
  std::string path_;
  Fd socket_;
  std::timed_mutex exchanging_;
  std::uint64_t next_id_ = 0;
  std::string token_;
};

}  // namespace modelbroker::client
