// Admission and expiry by a fake tier and a clock that the test turns.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>

#include "broker/tier/admission.h"
#include "broker/tier/expiry.h"
#include "tests/support/fake_tier.h"
#include "tests/support/turned_clock.h"

namespace modelbroker {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using namespace std::chrono_literals;

class TierTest : public ::testing::Test {
 protected:
  struct Asker {
    Admission::Id id = 0;
    std::optional<Result<Budget::Reservation>> answer;

    [[nodiscard]] bool waits() const { return !answer.has_value(); }
    [[nodiscard]] bool is_admitted() const { return answer && answer->has_value(); }
    [[nodiscard]] bool is_refused() const { return answer && !answer->has_value(); }
  };
  using AskerPtr = std::shared_ptr<Asker>;

  AskerPtr ask(std::uint64_t bytes, std::optional<Duration> patience = std::nullopt,
               std::optional<Admission::Id> place = std::nullopt) {
    auto asker = std::make_shared<Asker>();
    Admission::Ask asked{.bytes = bytes, .what = "'file'", .until = std::nullopt};
    if (patience) asked.until = clock_.now() + *patience;
    asker->id = admission_.ask(
        std::move(asked), [asker](Result<Budget::Reservation> answer) { asker->answer = std::move(answer); }, place);
    testing::settle(*loop_);
    return asker;
  }
  void turn(Duration by) {
    clock_.turn(by);
    testing::settle(*loop_);
  }
  void free(const std::string& block) {
    tier_.free(block);
    testing::settle(*loop_);
  }

  testing::StandingClock clock_;
  std::unique_ptr<Os> os_ = make_plain_os();
  std::unique_ptr<Loop> loop_ = std::move(Loop::create(*os_, clock_)).value();
  testing::FakeTier tier_{10};
  Admission admission_{tier_, *loop_};
};

// ---- admission

TEST_F(TierTest, WhatFitsIsAdmittedAndCounts) {
  const AskerPtr first = ask(6);
  EXPECT_TRUE(first->is_admitted());
  EXPECT_EQ(tier_.budget().available(tier_.use()), 4U);
  EXPECT_TRUE(ask(5)->is_refused());
  EXPECT_TRUE(ask(4)->is_admitted());
  first->answer.reset();  // the reservation ends
  EXPECT_TRUE(ask(6)->is_admitted());
}

TEST_F(TierTest, WhatCanNeverFitIsRefusedAtOnceAndEvictsNothing) {
  tier_.add("a", 4);
  const AskerPtr asker = ask(11, 1h);
  ASSERT_TRUE(asker->is_refused());
  EXPECT_EQ(asker->answer->error().code, ErrorCode::kResourceExhausted);
  EXPECT_THAT(tier_.evicted, IsEmpty());
}

TEST_F(TierTest, TheLeastValuableGoesAndItsMemoryIsWaitedFor) {
  tier_.add("dear", 4, 2);
  tier_.add("cheap", 4, 1);
  const AskerPtr asker = ask(5);
  EXPECT_TRUE(asker->waits());
  EXPECT_THAT(tier_.evicted, ElementsAre("cheap: room was needed"));
  turn(9s);
  EXPECT_TRUE(asker->waits());
  free("cheap");
  EXPECT_TRUE(asker->is_admitted());
  EXPECT_THAT(tier_.evicted, ElementsAre("cheap: room was needed"));
}

TEST_F(TierTest, WhatIsUsedOrMappedStays) {
  tier_.add("leased", 4);
  tier_.keep("leased");
  tier_.add("mapped", 4);
  tier_.map_somewhere("mapped");
  const AskerPtr asker = ask(4);
  ASSERT_TRUE(asker->is_refused());
  EXPECT_EQ(asker->answer->error().details.at("needed"), 4U);
  EXPECT_EQ(asker->answer->error().details.at("available"), 2U);
  EXPECT_THAT(tier_.evicted, IsEmpty());
}

TEST_F(TierTest, RoomThatNobodyFreesIsRefusedAfterTenSeconds) {
  tier_.add("a", 10);
  const AskerPtr asker = ask(4);
  turn(9999ms);
  EXPECT_TRUE(asker->waits());
  turn(2ms);
  EXPECT_TRUE(asker->is_refused());
}

TEST_F(TierTest, ADeadlineIsWaitedForAndTheRefusalComesBeforeIt) {
  tier_.add("leased", 10);
  tier_.keep("leased");
  const AskerPtr asker = ask(4, 60s);
  turn(60s - 51ms);
  EXPECT_TRUE(asker->waits());
  turn(1ms);
  EXPECT_TRUE(asker->is_refused());
}

TEST_F(TierTest, WhatIsLetGoWithoutAWordIsFoundWithinASecond) {
  tier_.add("mapped", 10);
  tier_.map_somewhere("mapped");
  const AskerPtr asker = ask(4, 60s);
  tier_.unmap("mapped");
  turn(1s);
  EXPECT_THAT(tier_.evicted, ElementsAre("mapped: room was needed"));
  free("mapped");
  EXPECT_TRUE(asker->is_admitted());
}

TEST_F(TierTest, WhoCannotBeServedYetHoldsUpNobodyWhoseFileFits) {
  tier_.add("leased", 6);
  tier_.keep("leased");
  const AskerPtr large = ask(8, 60s);
  EXPECT_TRUE(ask(3)->is_admitted());
  EXPECT_TRUE(large->waits());
}

TEST_F(TierTest, WhoCameFirstIsServedFirst) {
  tier_.add("leased", 8);
  tier_.keep("leased");
  const AskerPtr first = ask(6, 60s), second = ask(6, 60s);
  tier_.let_go("leased");
  admission_.look_again();
  testing::settle(*loop_);
  free("leased");
  EXPECT_TRUE(first->is_admitted());
  EXPECT_TRUE(second->waits());
  first->answer.reset();
  admission_.look_again();
  testing::settle(*loop_);
  EXPECT_TRUE(second->is_admitted());
}

TEST_F(TierTest, WhoAsksAgainKeepsItsPlace) {
  tier_.add("leased", 8);
  tier_.keep("leased");
  const AskerPtr gave_up = ask(6, 60s), other = ask(6, 60s);
  admission_.withdraw(gave_up->id);
  const AskerPtr again = ask(6, 60s, gave_up->id);
  tier_.let_go("leased");
  admission_.look_again();
  testing::settle(*loop_);
  free("leased");
  EXPECT_TRUE(again->is_admitted());
  EXPECT_TRUE(other->waits());
  EXPECT_TRUE(gave_up->waits());  // never told
}

TEST_F(TierTest, TheQueueIsBounded) {
  tier_.add("leased", 10);
  tier_.keep("leased");
  std::vector<AskerPtr> askers;
  for (std::size_t i = 0; i < Admission::kMostWaiting; ++i) askers.push_back(ask(4, 60s));
  EXPECT_TRUE(std::ranges::all_of(askers, [](const AskerPtr& asker) { return asker->waits(); }));
  EXPECT_TRUE(ask(4, 60s)->is_refused());
}

TEST_F(TierTest, RoomOfAGivenUpLoadIsWaitedForUntilItIsLate) {
  tier_.add("a", 4);
  const AskerPtr cancelled = ask(6);
  (**cancelled->answer).give_up(clock_.now());
  const AskerPtr asker = ask(4);
  EXPECT_TRUE(asker->waits());
  EXPECT_THAT(tier_.evicted, IsEmpty());  // the cancelled load's memory should do
  turn(1001ms);
  EXPECT_THAT(tier_.evicted, ElementsAre("a: room was needed"));  // its read hangs
  free("a");
  EXPECT_TRUE(asker->is_admitted());
}

TEST_F(TierTest, LateRoomKeepsNobodyFromEvictingWhatIsLetGoLater) {
  tier_.add("leased", 4);
  tier_.keep("leased");
  const AskerPtr cancelled = ask(6);
  (**cancelled->answer).give_up(clock_.now());
  const AskerPtr asker = ask(4, 60s);
  turn(11s);
  EXPECT_TRUE(asker->waits());
  tier_.let_go("leased");
  admission_.look_again();
  testing::settle(*loop_);
  EXPECT_THAT(tier_.evicted, ElementsAre("leased: room was needed"));
  free("leased");
  EXPECT_TRUE(asker->is_admitted());
}

TEST_F(TierTest, ALowerLimitEvictsWhatNobodyHasAndTheRestWhenItCan) {
  tier_.add("free", 3);
  tier_.add("leased", 6);
  tier_.keep("leased");
  tier_.budget().set_limit(5);
  admission_.limit_changed();
  testing::settle(*loop_);
  EXPECT_THAT(tier_.evicted, ElementsAre("free: room was needed"));
  free("free");
  tier_.let_go("leased");
  admission_.look_again();
  testing::settle(*loop_);
  EXPECT_THAT(tier_.evicted, ElementsAre("free: room was needed", "leased: room was needed"));
}

TEST_F(TierTest, APlaceThatOthersFillRefusesInItsOwnWords) {
  tier_.set_place({3, true});
  const AskerPtr asker = ask(4);
  ASSERT_TRUE(asker->is_refused());
  EXPECT_THAT(asker->answer->error().message, HasSubstr("the place is full: 'file'"));
  EXPECT_TRUE(ask(3)->is_admitted());
}

TEST_F(TierTest, WhereNoMoreCanBeMadeOneGoes) {
  tier_.set_place({std::nullopt, false});
  tier_.add("a", 1);
  tier_.add("b", 1, 2);
  const AskerPtr asker = ask(1);
  EXPECT_TRUE(asker->waits());
  EXPECT_THAT(tier_.evicted, ElementsAre("a: room was needed"));
  tier_.set_place({});
  free("a");
  EXPECT_TRUE(asker->is_admitted());
}

// ---- expiry

class ExpiryTest : public TierTest {
 protected:
  void look() {
    expiry_.look();
    testing::settle(*loop_);
  }
  Expiry expiry_{tier_, *loop_};
};

TEST_F(ExpiryTest, ABlockGoesWhenItsTimeIsOverAndNotBefore) {
  tier_.add("short", 1, 1, clock_.now() + 5s);
  tier_.add("long", 1, 1, clock_.now() + 60s);
  tier_.add("for ever", 1);
  look();
  turn(4999ms);
  EXPECT_THAT(tier_.evicted, IsEmpty());
  turn(1ms);
  EXPECT_THAT(tier_.evicted, ElementsAre("short: keep_alive is over"));
  turn(54s);
  EXPECT_EQ(tier_.evicted.size(), 1U);
  turn(1s);
  EXPECT_THAT(tier_.evicted, ElementsAre("short: keep_alive is over", "long: keep_alive is over"));
}

TEST_F(ExpiryTest, OneThatSomebodyHasIsAskedAgainEverySecond) {
  tier_.add("mapped", 1, 1, clock_.now());
  tier_.map_somewhere("mapped");
  look();
  turn(3s);
  EXPECT_THAT(tier_.evicted, IsEmpty());
  tier_.unmap("mapped");
  turn(1s);
  EXPECT_THAT(tier_.evicted, ElementsAre("mapped: keep_alive is over"));
}

TEST_F(ExpiryTest, AnEarlierEndIsHeeded) {
  tier_.add("a", 1, 1, clock_.now() + 60s);
  look();
  tier_.add("a", 1, 1, clock_.now() + 2s);
  expiry_.changed(clock_.now() + 2s);
  expiry_.changed(std::nullopt);  // another one, which never ends
  turn(2s);
  EXPECT_THAT(tier_.evicted, ElementsAre("a: keep_alive is over"));
}

}  // namespace
}  // namespace modelbroker
