// What subscribers of the PUB socket get, and what one that does not read costs.
#include "broker/doors/event_socket.h"
#include "broker/models/model_events.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <zmq.hpp>

#include "tests/support/block_fixture.h"
#include "tests/support/sanitized.h"
#include "tests/support/temp_directory.h"
#include "tests/support/watchdog.h"
#include "wire/frame.h"

namespace modelbroker {
namespace {

using testing::kSanitized;

constexpr const char* kBoot = "0123456789abcdef0123456789abcdef";

class Subscriber {
 public:
  // `high_water`: how many events its side takes in; 0: any number.
  Subscriber(const std::string& endpoint, const std::string& topic, int high_water = 0)
      : socket_(context_, zmq::socket_type::sub) {
    socket_.set(zmq::sockopt::linger, 0);
    socket_.set(zmq::sockopt::rcvhwm, high_water);
    socket_.set(zmq::sockopt::subscribe, topic);
    socket_.connect(endpoint);
  }
  // Nothing if none comes in that time.
  std::optional<std::pair<std::string, wire::Event>> next(int milliseconds = 20000) {
    socket_.set(zmq::sockopt::rcvtimeo, milliseconds);
    zmq::message_t topic, body;
    if (!socket_.recv(topic)) return std::nullopt;
    EXPECT_TRUE(topic.more());
    EXPECT_TRUE(socket_.recv(body));
    EXPECT_FALSE(body.more());
    auto event = wire::decode_event(body.to_string_view());
    EXPECT_TRUE(event) << event.error().message;
    return std::pair(topic.to_string(), std::move(*event));
  }

 private:
  zmq::context_t context_{1};
  zmq::socket_t socket_;
};

// Of this process, without what it shares.
std::uint64_t anonymous_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    std::uint64_t kibibytes = 0;
    if (word == "RssAnon:" && status >> kibibytes) return kibibytes * 1024;
  }
  return 0;
}

class EventsTest : public ::testing::Test {
 protected:
  EventsTest() : endpoint_("ipc://" + folder_ / "e"), events_(EventSocket::bind(endpoint_, kBoot).value()) {}

  static wire::EventData of(std::uint64_t count, std::string model = "m") {
    wire::EventData data;
    data.model = std::move(model);
    data.count = count;
    return data;
  }
  // Publishes until the subscriber hears: then it is known here. Returns what it heard.
  wire::Event publish_until_heard(Subscriber& subscriber, std::string_view type = "model.pinned") {
    while (true) {
      events_->publish(type, {});
      if (auto heard = subscriber.next(20)) {
        while (heard->second.seq < events_->last_seq()) heard = subscriber.next();
        return heard->second;
      }
    }
  }

  testing::Watchdog watchdog_;
  testing::TempDirectory folder_{"/tmp"};
  std::string endpoint_;
  std::unique_ptr<EventSocket> events_;
};

TEST_F(EventsTest, EachEventHasTheNextNumberOfItsBoot) {
  EXPECT_EQ(events_->last_seq(), 0U);
  Subscriber subscriber(endpoint_, "");
  const std::uint64_t before = publish_until_heard(subscriber).seq;
  EXPECT_EQ(before, events_->last_seq());
  const auto begin = std::chrono::system_clock::now();
  for (std::uint64_t i = 1; i <= 100; ++i) {
    events_->publish(i % 2 == 0 ? "model.loaded" : "lease.granted", of(i));
    EXPECT_EQ(events_->last_seq(), before + i);
  }
  for (std::uint64_t i = 1; i <= 100; ++i) {
    const auto heard = subscriber.next();
    ASSERT_TRUE(heard);
    const auto& [topic, event] = *heard;
    EXPECT_EQ(topic, i % 2 == 0 ? "model.loaded" : "lease.granted");
    EXPECT_EQ(event.type, topic);
    EXPECT_EQ(event.seq, before + i);
    EXPECT_EQ(event.boot_id, kBoot);
    EXPECT_EQ(event.data.model, "m");
    EXPECT_EQ(event.data.count, i);
    EXPECT_GE(event.time, std::chrono::duration<double>(begin.time_since_epoch()).count());
  }
}

TEST_F(EventsTest, WithoutSubscribersEventsAreCounted) {
  for (int i = 0; i < 10; ++i) events_->publish("model.pinned", {});
  EXPECT_EQ(events_->last_seq(), 10U);
}

TEST_F(EventsTest, ATopicGetsItsTypesAlone) {
  Subscriber subscriber(endpoint_, "model.");
  publish_until_heard(subscriber);
  events_->publish("lease.granted", of(1));
  events_->publish("model.unpinned", of(2));
  const auto heard = subscriber.next();
  ASSERT_TRUE(heard);
  EXPECT_EQ(heard->first, "model.unpinned");
  EXPECT_EQ(heard->second.seq, events_->last_seq());
}

TEST_F(EventsTest, WhatIsEmptyIsLeftOut) {
  const std::string bare = wire::encode_event({kBoot, 1, "model.pinned", 1.5, {}});
  for (const char* const word : {"model", "bytes", "reason", "pid"}) {
    // "model" is also the beginning of the type's text.
    EXPECT_EQ(bare.find("\xa5" + std::string(word)), std::string::npos) << word;
  }
  const auto decoded = wire::decode_event(bare);
  ASSERT_TRUE(decoded) << decoded.error().message;
  EXPECT_EQ(decoded->data.model, "");
  EXPECT_EQ(decoded->time, 1.5);
}

TEST_F(EventsTest, ASubscriberThatDoesNotReadCostsNoTimeAndLittleMemory) {
  Subscriber reader(endpoint_, "");
  publish_until_heard(reader);
  Subscriber silent(endpoint_, "", 1);
  publish_until_heard(silent);
  while (reader.next(100)) {
  }
  const std::string text(1000, 'x');
  const auto flood = [&](int events) {
    for (int i = 0; i < events; ++i) {
      events_->publish("model.load_failed", of(1, text));
      if (i % 250 != 249) continue;
      std::uint64_t seq = 0;  // of what the reader has heard: all
      while (seq < events_->last_seq()) {
        const auto heard = reader.next();
        ASSERT_TRUE(heard);
        EXPECT_TRUE(seq == 0 || heard->second.seq == seq + 1);
        seq = heard->second.seq;
      }
      // That it reads is heard with what peers say, and by sends at most once a millisecond: a fast machine would
      // count 1,000 waiting events by then.
      events_->take_subscriptions();
    }
  };
  flood(3000);
  const std::uint64_t before = anonymous_bytes();
  const int events = kSanitized ? 15'000 : 50'000;
  flood(events);
  // 50 MB, if it were kept. (Sanitizers keep what is freed, and notes about it: there it is counted below alone.)
  if (!kSanitized) {
    EXPECT_LT(anonymous_bytes(), before + (8U << 20));
  }
  std::uint64_t seq = 0;
  int heard = 0;
  while (const auto event = silent.next(200)) {
    seq = event->second.seq;
    ++heard;
  }
  EXPECT_LT(heard, events / 5 * 2);
  EXPECT_GT(heard, 0);
  // It reads again: what comes now it gets, and sees that something is missing.
  EXPECT_GT(publish_until_heard(silent).seq, seq + 1);
}

TEST_F(EventsTest, LastWordsLeaveBeforeTheEnd) {
  Subscriber subscriber(endpoint_, "");
  publish_until_heard(subscriber);
  events_->publish("broker.stopping", {});
  events_.reset();
  const auto heard = subscriber.next();
  ASSERT_TRUE(heard);
  EXPECT_EQ(heard->first, "broker.stopping");
}

TEST_F(EventsTest, AnotherBootIsTheSameSocketAndItsOwnCount) {
  Subscriber subscriber(endpoint_, "");
  publish_until_heard(subscriber);
  events_.reset();
  ::unlink((folder_ / "e").c_str());
  events_ = EventSocket::bind(endpoint_, "another").value();
  const wire::Event heard = publish_until_heard(subscriber);  // libzmq has connected again
  EXPECT_EQ(heard.boot_id, "another");
  EXPECT_EQ(heard.seq, events_->last_seq());
}

TEST_F(EventsTest, NobodyElseMayConnect) {
  struct stat found {};
  ASSERT_EQ(::stat((folder_ / "e").c_str(), &found), 0);
  EXPECT_EQ(found.st_mode & 0777U, 0600U);
  const mode_t mask = ::umask(0022);
  ::umask(mask);
  EXPECT_NE(mask, 0177U);  // it is put back
}

TEST_F(EventsTest, APathThatCannotBeBoundIsAnError) {
  const auto none = EventSocket::bind("ipc://" + folder_ / "no/such/folder/e", kBoot);
  ASSERT_FALSE(none);
  EXPECT_NE(none.error().message.find("no/such/folder"), std::string::npos) << none.error().message;
}

class EventDataTest : public testing::BlockFixture {};

TEST_F(EventDataTest, AModelIsToldOfByNameBlockAndSize) {
  RamBlock block(make({.payload_size = 10'000, .generation = 7}));
  block.sources.push_back({"/models/m", {}});
  const ModelEntry model{.id = block.id(), .parts = {&block}, .names = {"m", "alias"}, .type = "", .path = "/models/m"};
  const wire::EventData named = event_of(model);
  EXPECT_EQ(named.model, "m");
  EXPECT_EQ(named.path, "/models/m");
  EXPECT_EQ(named.block, block.id());
  EXPECT_EQ(named.generation, 7U);
  EXPECT_EQ(named.bytes, block.bytes());
  EXPECT_EQ(event_of(block).model, block.block->manifest().name);
  block.is_private = true;
  EXPECT_EQ(event_of(model).path + event_of(block).path, "");
}

TEST(EventDataOfAPeerTest, IsItsUidAndPid) {
  const wire::EventData data = event_of(Peer{1000, 42});
  EXPECT_EQ(data.uid, 1000U);
  EXPECT_EQ(data.pid, 42U);
}

}  // namespace
}  // namespace modelbroker
