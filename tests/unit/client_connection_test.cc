#include "cpp_client/connection.h"

#include <gtest/gtest.h>
#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <thread>

#include "tests/support/in_process_broker.h"
#include "tests/support/safetensors_file.h"
#include "tests/support/watchdog.h"

namespace modelbroker::client {
namespace {

// SIGUSR1 at the constructing thread all the time, with a handler that lets no call go on.
class Interruptions {
 public:
  Interruptions() {
    struct sigaction action {};
    action.sa_handler = [](int) { ++count_; };
    ::sigaction(SIGUSR1, &action, &before_);
    thread_ = std::jthread([target = ::pthread_self()](const std::stop_token& stop) {
      while (!stop.stop_requested()) {
        ::pthread_kill(target, SIGUSR1);
        std::this_thread::sleep_for(std::chrono::microseconds(50));
      }
    });
  }
  ~Interruptions() {
    thread_ = {};
    ::sigaction(SIGUSR1, &before_, nullptr);
  }
  Interruptions(const Interruptions&) = delete;
  Interruptions& operator=(const Interruptions&) = delete;
  [[nodiscard]] int count() const { return count_; }

 private:
  static inline std::atomic<int> count_{0};
  struct sigaction before_ {};
  std::jthread thread_;
};

TEST(ClientConnection, SignalsThatTheProgramHandlesFailNoRequest) {
  const testing::Watchdog watchdog;
  testing::InProcessBroker broker;
  auto connection = Connection::connect(broker.os(), {.endpoint = broker.endpoint()});
  ASSERT_TRUE(connection) << connection.error().message;
  const std::string path = broker / "file";
  testing::write_file(path, "x");
  const Fd file = testing::open_source(path);
  const Interruptions interruptions;
  for (int i = 0; i < 2000 || interruptions.count() < 1000; ++i) {
    const auto pong = connection->request<wire::SessionPingReply>("session.ping", wire::Empty{}, Timeout(60'000));
    ASSERT_TRUE(pong) << i << ": " << pong.error().message;
    const auto offered = connection->offer_file(file);  // past the most, that it is too many
    ASSERT_TRUE(offered || offered.error().code == ErrorCode::kResourceExhausted) << offered.error().message;
  }
}

}  // namespace
}  // namespace modelbroker::client
