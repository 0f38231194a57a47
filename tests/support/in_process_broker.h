// InProcessBroker: a real broker on a thread of this process, with folders of its own.
//
// Ends the process if it does not start or stop: a test has nothing to go on with. Threads: the test's own.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "broker/base/log.h"
#include "broker/server/server.h"
#include "tests/support/temp_directory.h"

namespace modelbroker::testing {

class InProcessBroker {
 public:
  // `before` gets the Os and the RAM directory, in which an earlier broker may have left something.
  explicit InProcessBroker(const std::function<void(Os&, const std::string&)>& before = {},
                           const Clock& clock = system_clock()) {
    set_log_level("error");
    if (before) before(*os_, folder_.path());
    std::promise<Server*> started;
    thread_ = std::thread([this, &started, &clock] {
      Config config;
      config.run_directory = folder_ / "run";
      config.ram_directory = folder_.path();
      config.ram_budget = 64U << 20U;
      auto server = Server::start(*os_, clock, config);
      if (!server) give_up(server.error());
      started.set_value(server->get());
      if (const auto ran = (*server)->run(); !ran) give_up(ran.error());
    });
    server_ = started.get_future().get();
  }
  ~InProcessBroker() { stop(); }
  InProcessBroker(const InProcessBroker&) = delete;
  InProcessBroker& operator=(const InProcessBroker&) = delete;

  // As SIGTERM does; blocks are freed or kept as the configuration says.
  void stop() {
    if (!thread_.joinable()) return;
    server_->request_stop();
    thread_.join();
  }

  [[nodiscard]] Os& os() { return *os_; }
  [[nodiscard]] std::string operator/(const std::string& name) const { return folder_ / name; }
  [[nodiscard]] std::string endpoint() const { return "ipc://" + (folder_ / "run/broker.sock"); }

 private:
  static const Clock& system_clock() {
    static const SystemClock clock;
    return clock;
  }
  static void give_up(const Error& error) {
    std::fprintf(stderr, "the broker in this process: %s\n", error.message.c_str());
    std::abort();
  }

  TempDirectory folder_;
  std::unique_ptr<Os> os_ = make_os({folder_.path(), ""});
  Server* server_ = nullptr;
  std::thread thread_;
};

}  // namespace modelbroker::testing
