// BrokerProcess: a real `modelbroker serve` with folders of its own, for C++ tests as for any client.
//
// The test names the program: MODELBROKER_PROGRAM, a compile definition. start() and kill() may alternate: the folders
// stay. Threads: the test's own.
#pragma once

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/support/temp_directory.h"

namespace modelbroker::testing {

class BrokerProcess {
 public:
  BrokerProcess() { start(); }
  ~BrokerProcess() {
    if (pid_ > 0) stop();
    // A lock stays for the next broker of its instance, and one that was killed has left its blocks: none follows.
    const std::string prefix = "modelbroker." + std::to_string(::geteuid()) + "." + instance_ + ".";
    for (const auto& file : std::filesystem::directory_iterator("/dev/shm")) {
      std::error_code gone;
      if (file.path().filename().string().starts_with(prefix)) std::filesystem::remove(file.path(), gone);
    }
  }
  BrokerProcess(const BrokerProcess&) = delete;
  BrokerProcess& operator=(const BrokerProcess&) = delete;

  void start() {
    const std::vector<std::string> words{MODELBROKER_PROGRAM, "serve",    "--run-directory", folder_ / "run",
                                         "--ram-directory",   "/dev/shm", "--instance",      instance_,
                                         "--ram-budget",      "256MiB",   "--log-level",     "error"};
    pid_ = ::fork();
    if (pid_ < 0) throw std::runtime_error("fork");
    if (pid_ > 0) return;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    std::vector<char*> arguments;
    for (const std::string& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
    arguments.push_back(nullptr);
    ::execv(arguments.front(), arguments.data());
    ::_exit(127);
  }
  // SIGKILL: the crash that every client must survive.
  void kill() { end(SIGKILL); }
  // A clean stop, which frees every block.
  void stop() { end(SIGTERM); }
  // Returns when every thread of it stands still.
  void freeze() const {
    ::kill(pid_, SIGSTOP);
    while (::waitpid(pid_, nullptr, WUNTRACED) < 0 && errno == EINTR) {
    }
  }
  void thaw() const { ::kill(pid_, SIGCONT); }

  [[nodiscard]] std::string operator/(const std::string& name) const { return folder_ / name; }
  [[nodiscard]] std::string endpoint() const { return "ipc://" + (folder_ / "run/broker.sock"); }
  // How many it has open.
  [[nodiscard]] std::size_t descriptors() const {
    const std::filesystem::directory_iterator open("/proc/" + std::to_string(pid_) + "/fd");
    return static_cast<std::size_t>(std::distance(open, {}));
  }

 private:
  void end(int signal) {
    ::kill(pid_, signal);
    while (::waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
    }
    pid_ = -1;
  }

  TempDirectory folder_;
  std::string instance_ = "c" + std::to_string(::getpid());
  pid_t pid_ = -1;
};

}  // namespace modelbroker::testing
