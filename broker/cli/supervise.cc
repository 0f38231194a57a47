#include "broker/cli/supervise.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <string>

#include "broker/base/clock.h"
#include "broker/base/log.h"
#include "shm/fd.h"

namespace modelbroker::cli {
namespace {

using namespace std::chrono_literals;

constexpr Duration kFirstPause = 100ms;
constexpr Duration kLongestPause = 5s;
constexpr Duration kLongLife = 30s;  // after it the next death is a new story

sigset_t watched_signals() {
  sigset_t set;
  ::sigemptyset(&set);
  for (const int number : {SIGTERM, SIGINT, SIGHUP, SIGCHLD}) ::sigaddset(&set, number);
  return set;
}

std::string how_it_ended(int status) {
  if (WIFEXITED(status)) return "ended with status " + std::to_string(WEXITSTATUS(status));
  const char* const name = ::sigabbrev_np(WTERMSIG(status));
  return "was killed by " + (name == nullptr ? "a signal" : "SIG" + std::string(name));
}

std::string milliseconds(Duration time) {
  return std::to_string(std::chrono::duration_cast<std::chrono::milliseconds>(time).count()) + " ms";
}

class Supervisor {
 public:
  Supervisor(const std::function<int()>& prepare, const std::function<int(const Serving&)>& broker)
      : prepare_(prepare), broker_(broker), signals_(watched_signals()) {}

  int run() {
    ::sigprocmask(SIG_BLOCK, &signals_, &before_);
    ::signal(SIGPIPE, SIG_IGN);
    Duration pause = kFirstPause;
    while (true) {
      const TimePoint started = clock_.now();
      const bool was_stopping = stopping_;
      const int status = run_one();
      if (ended_for_good(status, was_stopping)) return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
      if (clock_.now() - started >= kLongLife) pause = kFirstPause;
      log_error("the broker " + how_it_ended(status) + ": the next one starts " +
                (stopping_ ? "to stop cleanly" : "in " + milliseconds(pause)));
      wait_for_stop(pause);
      pause = std::min(2 * pause, kLongestPause);
    }
  }

 private:
  // One that was killed after a stop was asked for has left its blocks: one more is started, to stop cleanly.
  [[nodiscard]] bool ended_for_good(int status, bool was_stopping) const {
    if (was_stopping) return true;
    if (!WIFEXITED(status)) return false;
    return stopping_ || WEXITSTATUS(status) == 0 || !has_served_;
  }

  // One life of a broker: its status as waitpid gives it.
  int run_one() {
    if (const int refused = prepare_(); refused != 0) return W_EXITCODE(refused, 0);
    std::array<int, 2> ends{-1, -1};
    const bool piped = ::pipe2(ends.data(), O_CLOEXEC | O_NONBLOCK) == 0;
    Fd ours(ends[0]), theirs(ends[1]);
    const pid_t child = ::fork();
    if (child < 0) {
      log_error(std::string("a broker cannot be started: ") + std::strerror(errno));
      return W_EXITCODE(1, 0);
    }
    if (child == 0) {
      ours.reset();
      become_the_broker(std::move(theirs));
    }
    theirs.reset();
    // A stop that came while no broker ran: this one is to leave things as a clean stop does.
    if (stopping_) ::kill(child, SIGTERM);
    const int status = watch(child);
    char said = 0;
    if (piped && ::read(ours.get(), &said, 1) == 1) has_served_ = true;
    return status;
  }

  [[noreturn]] void become_the_broker(Fd say) {
    // The stop signals stay blocked: the broker reads them by descriptor, also one that came already.
    sigset_t mask = before_;
    for (const int number : {SIGTERM, SIGINT, SIGHUP}) ::sigaddset(&mask, number);
    ::sigprocmask(SIG_SETMASK, &mask, nullptr);
    const int status = broker_([&say] { (void)!::write(say.get(), "s", 1); });
    std::fflush(stdout);
    ::_exit(status);
  }

  // Passes signals on until the child has ended.
  int watch(pid_t child) {
    while (true) {
      // Of all children, since a supervisor that is process 1 of a container inherits orphans.
      int status = 0;
      pid_t ended = 0;
      while ((ended = ::waitpid(-1, &status, WNOHANG)) > 0) {
        if (ended == child) return status;
      }
      if (ended < 0 && errno == ECHILD) return W_EXITCODE(1, 0);
      const int number = ::sigwaitinfo(&signals_, nullptr);
      if (number == SIGTERM || number == SIGINT) stopping_ = true;
      if (number == SIGTERM || number == SIGINT || number == SIGHUP) ::kill(child, number);
      if (number == SIGHUP) (void)prepare_();  // what the broker takes over now, the next one starts with
    }
  }

  // The pause between two lives, shortened by a stop.
  void wait_for_stop(Duration pause) {
    const TimePoint end = clock_.now() + pause;
    while (!stopping_) {
      const Duration left = end - clock_.now();
      if (left <= 0ns) return;
      const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(left);
      const timespec timeout{seconds.count(), (left - seconds).count()};
      const int number = ::sigtimedwait(&signals_, nullptr, &timeout);
      if (number == SIGTERM || number == SIGINT) stopping_ = true;
    }
  }

  const std::function<int()>& prepare_;
  const std::function<int(const Serving&)>& broker_;
  const sigset_t signals_;
  sigset_t before_{};
  const SystemClock clock_;
  bool stopping_ = false;    // somebody told us to
  bool has_served_ = false;  // some broker of ours has
};

}  // namespace

int supervise(const std::function<int()>& prepare, const std::function<int(const Serving&)>& broker) {
  return Supervisor(prepare, broker).run();
}

}  // namespace modelbroker::cli
