// Gate: every connection that this process accepts, libzmq's included, passes here.
//
// libzmq takes connections until descriptors run out, and then aborts the process. Its accept4() is therefore ours:
// gate.cc defines that symbol for the whole program. The gate closes a connection again when descriptors come to an
// end (a reserve stays for files, deaths and blocks), when its uid or all members together have their share, or when
// its uid may not come in at all; libzmq and the fd socket hear of a peer that hung up. What is connected stays
// connected. Threads: any. Failure: a refused connection, and a warning at most once a second.
#pragma once

#include <sys/socket.h>

#include <chrono>
#include <cstddef>
#include <map>
#include <mutex>
#include <optional>

#include "broker/workers/rights.h"
#include "shm/fd.h"
#include "shm/os.h"

namespace modelbroker {

class Gate {
 public:
  // The process's. Before open() it only sees to it that no descriptor too few is an abort.
  [[nodiscard]] static Gate& get();

  // Raises the limit of descriptors, and begins to look at who comes.
  void open(Os& os, const Rights& rights);
  void close() noexcept;  // while `os` is still there

  [[nodiscard]] int accept(int listener, sockaddr* address, socklen_t* size, int flags) noexcept;
  // Whether a descriptor that somebody handed in took one of the reserve: then it is to be closed.
  [[nodiscard]] bool in_reserve(int fd) const noexcept;
  // How many descriptors one member may keep here.
  [[nodiscard]] std::size_t share() const noexcept;

 private:
  struct Connection {
    ino_t socket = 0;
    uid_t uid = 0;
    std::size_t cost = 0;  // descriptors
  };
  Gate();
  [[nodiscard]] const char* refusal(int fd);
  [[nodiscard]] bool has_room(uid_t uid, std::size_t cost) const;
  void forget(int fd);
  void forget_closed();
  bool turn_away_one(int listener) noexcept;
  void warn(const char* why) noexcept;

  mutable std::mutex mutex_;  // guards all below
  Os* os_ = nullptr;
  std::optional<Rights> rights_;
  int first_of_reserve_ = 0;  // descriptors are given lowest first
  std::size_t all_ = 0;       // descriptors that connections may use
  std::map<int, Connection> connections_;
  std::map<uid_t, std::size_t> used_;
  std::size_t used_by_all_ = 0, used_by_members_ = 0;
  std::chrono::steady_clock::time_point looked_, warned_;
  std::size_t unsaid_ = 0;
  Fd spare_;
};

}  // namespace modelbroker
