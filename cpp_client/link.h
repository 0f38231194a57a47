// Link: what a Broker and the weights attached through it share: its session, the leases held over it, and calls that
// outlive a restart of the broker.
//
// Invariant: every lease in `held_` is good on `session_`. A new session is published only when the leases have been
// stated on it, and a lease that an older session granted is not taken in. A lease has its number before it is asked
// for: a detach of that number ends it, also one that is granted only later.
// Threads: any. In a forked child it is of no use: open another (pid() tells).
// Failure: unavailable when no broker answers for 30 s or the deadline, deadline_exceeded, else what the broker said.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>
#include <zmq.hpp>

#include "cpp_client/channel.h"
#include "cpp_client/deadline.h"
#include "cpp_client/session.h"
#include "cpp_client/source_files.h"
#include "shm/error.h"
#include "shm/fd.h"
#include "shm/os.h"
#include "wire/endpoint.h"
#include "wire/frame.h"

namespace modelbroker::client {

// Held by what was attached; the lease ends with it.
class HeldLease;

class Link : public std::enable_shared_from_this<Link> {
 public:
  // Nothing is connected yet. Never destroyed in a forked child, where its threads do not exist.
  [[nodiscard]] static Result<std::shared_ptr<Link>> make(Os& os, wire::Endpoint endpoint);
  ~Link();  // ends the session
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  [[nodiscard]] const wire::Endpoint& endpoint() const noexcept { return endpoint_; }
  [[nodiscard]] pid_t pid() const noexcept { return pid_; }

  // Opens the session if there is none: one attempt.
  [[nodiscard]] Result<void> open(const Deadline& deadline);

  // Asks, and after a restart of the broker asks again, until there is an answer. `sources`, if given, are offered to
  // each session, and their handles go into data.file or data.files.
  template <class Reply, class M>
  [[nodiscard]] Result<Reply> call(std::string_view type, M data, const Deadline& deadline,
                                   const SourceFiles* sources = nullptr) {
    settle(deadline);
    const std::string id = next_id();
    return with_session<Reply>(deadline, [&](const SharedSession& session) -> Result<Reply> {
      MODELBROKER_TRY(offer(data, sources, *session, deadline));
      auto reply = ask<Reply>(*session, id, type, data, deadline);
      if constexpr (requires { data.retry; }) data.retry = false;  // it costs one broker at most
      return reply;
    });
  }

  struct Granted {
    wire::AttachReply reply;
    std::shared_ptr<const HeldLease> lease;
  };
  [[nodiscard]] Result<Granted> attach(wire::Attach data, const Deadline& deadline,
                                       const SourceFiles* sources = nullptr);
  // A descriptor of a leased block that cannot be opened by its path.
  [[nodiscard]] Result<Fd> open_block(const std::string& block, const Deadline& deadline);

 private:
  friend class HeldLease;
  using SharedSession = std::shared_ptr<Session>;
  using Leases = std::map<std::uint64_t, wire::HeldLease>;  // by number

  // What is left to do, for the keeper.
  enum class Tended : std::uint8_t { kIdle, kUntold, kUnreachable };

  Link(Os& os, wire::Endpoint endpoint, Fd wake);

  template <class Reply, class Work>
  [[nodiscard]] Result<Reply> with_session(const Deadline& deadline, Work work) {
    while (true) {
      MODELBROKER_ASSIGN(const SharedSession session, session_for(deadline));
      Result<Reply> outcome = work(session);
      if (outcome || !is_lost(outcome.error())) return outcome;
      lose(session);
    }
  }
  template <class Reply, class M>
  [[nodiscard]] Result<Reply> ask(const Session& session, const std::string& id, std::string_view type, const M& data,
                                  const Deadline& deadline) {
    const auto encode = [&](std::uint64_t deadline_ms) {
      return wire::encode_request(
          {.request_id = id, .type = type, .session = session.token(), .deadline_ms = deadline_ms}, data);
    };
    MODELBROKER_ASSIGN(const auto reply, exchange(session, id, type, encode, deadline));
    return reply.template data<Reply>();
  }
  template <class M>
  [[nodiscard]] static Result<void> offer(M& data, const SourceFiles* sources, Session& session,
                                          const Deadline& deadline) {
    if constexpr (requires { data.files; }) {
      if (sources != nullptr) {
        return offer_sources(*sources, data, [&](const Fd& file) { return session.offer_file(file, deadline); });
      }
    }
    return {};
  }
  [[nodiscard]] Result<wire::Reply> exchange(const Session& session, std::string_view id, std::string_view type,
                                             const Channel::Encode& encode, const Deadline& deadline);
  [[nodiscard]] std::string next_id();

  [[nodiscard]] Result<SharedSession> session_for(const Deadline& deadline);
  [[nodiscard]] SharedSession current() const;
  [[nodiscard]] Result<void> open_session(const Deadline& deadline);
  [[nodiscard]] Result<std::vector<std::uint64_t>> restate(const Session& session, const Leases& held,
                                                           const Deadline& deadline);
  void lose(const SharedSession& session);

  // Takes a granted lease in; lost when its session is over, and the lease with it.
  [[nodiscard]] Result<Granted> hold(wire::AttachReply reply, const SharedSession& session);
  // It is held no longer, or nobody waits for its grant.
  void drop(std::uint64_t lease);
  void settle(const Deadline& deadline);
  [[nodiscard]] bool detach(std::uint64_t lease, const Deadline& deadline);
  void keep();  // the keeper's thread
  [[nodiscard]] Tended tend();
  void wait_for_something(Timeout most) const;

  static constexpr Timeout kExchange{5000};
  // A broker that is too old to be told numbers counts from 1.
  static constexpr std::uint64_t kFirstLease = 1001;

  Os& os_;
  const wire::Endpoint endpoint_;
  const pid_t pid_;
  zmq::context_t context_{1};
  Fd wake_;
  const std::string prefix_ = random_prefix();
  std::atomic<std::uint64_t> next_request_ = 0;
  std::atomic<std::uint64_t> next_lease_ = kFirstLease;

  mutable std::mutex mutex_;  // short; guards what follows
  std::vector<Channel> idle_;
  std::uint64_t epoch_ = 0;  // of the channels: they belong to one broker
  SharedSession session_;
  Leases held_;
  std::deque<std::uint64_t> dropped_;  // leases that the broker is still to be told of
  bool stopping_ = false;

  std::timed_mutex renewing_;  // long: opening a session
  std::timed_mutex settling_;  // long: detaching
  std::thread keeper_;
};

class HeldLease {
 public:
  HeldLease(std::shared_ptr<Link> link, std::uint64_t number) : link_(std::move(link)), number_(number) {}
  ~HeldLease() { link_->drop(number_); }
  HeldLease(const HeldLease&) = delete;
  HeldLease& operator=(const HeldLease&) = delete;

 private:
  std::shared_ptr<Link> link_;
  std::uint64_t number_;
};

}  // namespace modelbroker::client
