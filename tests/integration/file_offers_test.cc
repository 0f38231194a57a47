// File offers of a broker whose clock is turned.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <filesystem>

#include "cpp_client/connection.h"
#include "tests/support/in_process_broker.h"
#include "tests/support/safetensors_file.h"
#include "tests/support/watchdog.h"

namespace modelbroker {
namespace {

using client::Connection;
using client::Timeout;

class TurnedClock final : public Clock {
 public:
  [[nodiscard]] TimePoint now() const noexcept override { return clock_.now() + Duration(ahead_); }
  void turn(std::chrono::seconds by) { ahead_ += Duration(by).count(); }

 private:
  SystemClock clock_;
  std::atomic<Duration::rep> ahead_ = 0;
};

TEST(FileOffers, OneThatNoRequestUsesExpires) {
  const testing::Watchdog watchdog;
  TurnedClock clock;
  testing::InProcessBroker broker({}, clock);
  auto connection = Connection::connect(broker.os(), {.endpoint = broker.endpoint()}).value();
  const std::string path = broker / "m.safetensors";
  testing::write_file(path, testing::safetensors_bytes("{" + testing::u8_tensor("a", 0, 2) + "}", "xy"));
  const Fd file = testing::open_source(path);
  const auto load = [&](const std::string& handle) {
    wire::LoadModel asked;
    asked.path = path;
    asked.file = handle;
    return connection.request<wire::LoadModelReply>("model.load_model", asked, Timeout(60'000));
  };
  const auto descriptors = [] { return std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {}); };
  const std::string used = connection.offer_file(file).value();
  clock.turn(std::chrono::seconds(29));
  ASSERT_TRUE(load(used));
  const auto before = descriptors();
  const std::string unused = connection.offer_file(file).value();
  EXPECT_EQ(descriptors(), before + 1);
  clock.turn(std::chrono::seconds(31));
  while (descriptors() > before) {  // a request wakes the loop, for only its clock was turned
    ASSERT_TRUE(connection.request<wire::SessionPingReply>("session.ping", wire::Empty{}, Timeout(60'000)));
  }
  const auto late = load(unused);
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code, ErrorCode::kNotFound);
  EXPECT_THAT(late.error().message, ::testing::HasSubstr("has expired"));
  EXPECT_TRUE(load(connection.offer_file(file).value()));
}

}  // namespace
}  // namespace modelbroker
