// FdSocket: sessions, and descriptors in and out; docs/protocol.md, "Requests over the fd socket".
//
// A connection is a session from its session.open on, and ends with it: by hang-up, or by the death of the
// process that connected (pidfd), whichever is first. Threads: the loop's only.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <unordered_map>

#include "broker/base/environment.h"
#include "broker/base/event_sink.h"
#include "broker/base/loop.h"
#include "broker/ram/ram_store.h"
#include "broker/workers/workers.h"
#include "wire/frame.h"

namespace modelbroker {

class FdSocket {
 public:
  using SessionEnded = std::function<void(SessionId)>;

  // Listens at `path` (0600). The caller holds the run directory's lock.
  [[nodiscard]] static Result<std::unique_ptr<FdSocket>> listen(const Environment& env, Workers& workers, RamStore& ram,
                                                                Loop& loop, EventSink& events, const std::string& path,
                                                                SessionEnded session_ended);
  ~FdSocket();
  // Listens, also once more when the socket's file was removed. Connected peers stay so.
  [[nodiscard]] Result<void> open_listener();
  FdSocket(const FdSocket&) = delete;
  FdSocket& operator=(const FdSocket&) = delete;

  // session.bye over ZeroMQ: the connection goes as well.
  void close_session(SessionId session);

 private:
  struct Connection {
    Fd socket, pidfd;
    WatchId socket_watch = 0, pidfd_watch = 0;
    Peer peer;
    SessionId session = 0;  // 0 until session.open
    TimerId silent;
  };
  using ConnectionId = std::uint64_t;

  FdSocket(const Environment& env, Workers& workers, RamStore& ram, Loop& loop, EventSink& events, std::string path,
           SessionEnded session_ended)
      : env_(env),
        workers_(workers),
        ram_(ram),
        loop_(loop),
        events_(events),
        path_(std::move(path)),
        session_ended_(std::move(session_ended)) {}
  [[nodiscard]] Result<void> watch_listener();
  void accept();
  void pause_accepting();
  void watch_death(Connection& connection, ConnectionId id);
  void close(ConnectionId id);
  void receive(ConnectionId id);
  struct Answer {
    std::string bytes;
    Fd descriptor;
  };
  [[nodiscard]] Answer answer(Connection& connection, Os::Packet& packet);
  [[nodiscard]] Result<Answer> serve(Connection& connection, const wire::Request& request,
                                     std::vector<Fd>& descriptors);
  [[nodiscard]] Result<Answer> open_session(Connection& connection, const wire::ReplyTo& to);
  [[nodiscard]] Result<Answer> offer_file(Session& session, const wire::ReplyTo& to, std::vector<Fd>& descriptors);
  [[nodiscard]] Result<Answer> open_block(const Session& session, const wire::Request& request);
  void expire_offers();

  const Environment& env_;
  Workers& workers_;
  RamStore& ram_;
  Loop& loop_;
  EventSink& events_;
  const std::string path_;
  SessionEnded session_ended_;
  Fd listener_;
  WatchId listener_watch_ = 0;
  bool expiring_ = false;  // a timer runs for the offers
  ConnectionId next_id_ = 1;
  std::unordered_map<ConnectionId, Connection> connections_;
};

// 32 hex digits that nobody can guess.
[[nodiscard]] std::string random_token();

}  // namespace modelbroker
