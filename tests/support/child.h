// Child: a forked process that runs a function, can tell its parent a line of text and then waits to be
// let go or killed. It dies with its parent. No GoogleTest assertion belongs in it: say() what happened.
#pragma once

#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <functional>
#include <stdexcept>
#include <string>

#include "shm/fd.h"

namespace modelbroker::testing {

class Child {
 public:
  // The child's end of the line.
  class Parent {
   public:
    explicit Parent(int socket) : socket_(socket) {}
    void say(const std::string& text) const { (void)!::write(socket_, text.data(), text.size()); }
    // Until the parent says something or is gone.
    void wait() const {
      char byte = 0;
      (void)!::read(socket_, &byte, 1);
    }

   private:
    int socket_;
  };

  // What `run` returns is the exit status.
  explicit Child(const std::function<int(const Parent&)>& run) {
    std::array<int, 2> ends{};
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) != 0) {
      throw std::runtime_error("socketpair");
    }
    Fd theirs(ends[1]);
    socket_ = Fd(ends[0]);
    pid_ = ::fork();
    if (pid_ < 0) throw std::runtime_error("fork");
    if (pid_ > 0) return;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    socket_.reset();
    ::_exit(run(Parent(theirs.get())));
  }
  ~Child() {
    if (pid_ > 0) kill();
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  [[nodiscard]] pid_t pid() const noexcept { return pid_; }
  // What the child said next; empty if it is gone.
  [[nodiscard]] std::string hear() const {
    std::array<char, 4096> buffer{};
    const ssize_t got = ::read(socket_.get(), buffer.data(), buffer.size());
    return got > 0 ? std::string(buffer.data(), static_cast<std::size_t>(got)) : std::string();
  }
  void let_go() const { (void)!::write(socket_.get(), "x", 1); }
  // SIGKILL, and waits for its end.
  void kill() {
    ::kill(pid_, SIGKILL);
    (void)wait();
  }
  // Its exit status, or 128 + the signal.
  int wait() {
    int status = 0;
    while (::waitpid(pid_, &status, 0) < 0) {
    }
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

 private:
  pid_t pid_ = -1;
  Fd socket_;
};

}  // namespace modelbroker::testing
