// Who talks to the broker, and who has a right to which blocks.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>

#include "broker/workers/lease_numbers.h"
#include "broker/workers/leases.h"
#include "broker/workers/sessions.h"

namespace modelbroker {
namespace {

using Blocks = std::vector<std::string>;

TimePoint at(int seconds) { return TimePoint(std::chrono::seconds(seconds)); }

// ---- sessions

TEST(SessionsTest, ASessionIsFoundByItsNumberAndItsToken) {
  Sessions sessions;
  Session* const one = sessions.open({1000, 7}, "token-1", at(5)).value();
  Session* const two = sessions.open({1000, 7}, "token-2", at(6)).value();
  EXPECT_NE(one->id, two->id);
  EXPECT_EQ(sessions.size(), 2U);
  EXPECT_EQ(sessions.find(one->id), one);
  EXPECT_EQ(sessions.find_token("token-2"), two);
  EXPECT_EQ(one->peer.uid, 1000U);
  EXPECT_EQ(one->peer.pid, 7);
  EXPECT_EQ(one->last_heard, at(5));
  EXPECT_EQ(one->token, "token-1");
  EXPECT_EQ(sessions.find(12345), nullptr);
  EXPECT_EQ(sessions.find_token("token-3"), nullptr);
}

TEST(SessionsTest, AClosedSessionIsGoneAndItsNumberNeverComesBack) {
  Sessions sessions;
  const SessionId first = sessions.open({}, "token", at(0)).value()->id;
  sessions.close(first);
  EXPECT_EQ(sessions.find(first), nullptr);
  EXPECT_EQ(sessions.find_token("token"), nullptr);
  EXPECT_EQ(sessions.size(), 0U);
  sessions.close(first);  // again changes nothing
  const SessionId second = sessions.open({}, "token", at(0)).value()->id;
  EXPECT_NE(first, second);
  sessions.close(first);
  EXPECT_NE(sessions.find_token("token"), nullptr);
}

TEST(SessionsTest, ThereIsAnEndToThem) {
  Sessions sessions;
  for (std::size_t i = 0; i < Sessions::kMost; ++i) {
    const std::string number = std::to_string(i);
    const auto id = static_cast<pid_t>(i);
    if (i % 2 == 0) {
      ASSERT_TRUE(sessions.open({1000, id}, "token-" + number, at(0)));
    } else {
      ASSERT_TRUE(sessions.plain({1000, id}, "route-" + number, at(0)));
    }
  }
  EXPECT_EQ(sessions.open({1000, 1}, "one more", at(0)).error().code, ErrorCode::kResourceExhausted);
  EXPECT_EQ(sessions.plain({1001, 1}, "one more", at(0)).error().code, ErrorCode::kResourceExhausted);
  EXPECT_TRUE(sessions.plain({1000, 1}, "route-1", at(0)));  // whose session is open already
  EXPECT_EQ(sessions.size(), Sessions::kMost);
  sessions.close(sessions.find_token("token-0")->id);
  EXPECT_TRUE(sessions.open({1000, 1}, "one more", at(0)));
}

TEST(SessionsTest, APlainPeerHasNoTokenToBeFoundBy) {
  Sessions sessions;
  (void)sessions.plain({1000, 7}, "route", at(0)).value();
  EXPECT_EQ(sessions.find_token(""), nullptr);
}

TEST(SessionsTest, OnePlainSessionStandsForAProcessWhateverItsRoute) {
  Sessions sessions;
  const auto first = sessions.plain({1000, 7}, "route-1", at(1)).value();
  EXPECT_TRUE(first.is_new);
  EXPECT_EQ(first.session->token, "");
  const auto again = sessions.plain({1000, 7}, "route-2", at(9)).value();
  EXPECT_FALSE(again.is_new);
  EXPECT_EQ(again.session, first.session);
  EXPECT_EQ(again.session->last_heard, at(9));  // any request is a heartbeat
  EXPECT_NE(sessions.plain({1000, 8}, "route-1", at(1))->session, first.session);
  EXPECT_NE(sessions.plain({1001, 7}, "route-1", at(1))->session, first.session);
  EXPECT_NE(sessions.open({1000, 7}, "token", at(1)).value(), first.session);
  EXPECT_EQ(sessions.size(), 4U);
}

TEST(SessionsTest, PlainPeersWithoutAPidAreToldApartByTheirRoute) {
  Sessions sessions;
  const auto one = sessions.plain({1000, 0}, "route-1", at(1)).value();
  EXPECT_NE(sessions.plain({1000, 0}, "route-2", at(1))->session, one.session);
  EXPECT_EQ(sessions.plain({1000, 0}, "route-1", at(1))->session, one.session);
  EXPECT_NE(sessions.plain({1001, 0}, "route-1", at(1))->session, one.session);
  // A process whose number looks like a route.
  EXPECT_NE(sessions.plain({1000, 1}, "", at(1))->session, sessions.plain({1000, 0}, "1", at(1))->session);
}

TEST(SessionsTest, AClosedPlainPeerBeginsANewSession) {
  Sessions sessions;
  const SessionId first = sessions.plain({1000, 7}, "r", at(1))->session->id;
  sessions.close(first);
  const auto again = sessions.plain({1000, 7}, "r", at(2)).value();
  EXPECT_TRUE(again.is_new);
  EXPECT_NE(again.session->id, first);
}

TEST(SessionsTest, AddressesStayWhileOthersComeAndGo) {
  Sessions sessions;
  Session* const first = sessions.open({}, "first", at(0)).value();
  std::vector<SessionId> others;
  for (int i = 0; i < 2000; ++i) others.push_back(sessions.open({}, std::to_string(i), at(0)).value()->id);
  for (const SessionId id : others) sessions.close(id);
  EXPECT_EQ(sessions.find_token("first"), first);
  EXPECT_EQ(first->token, "first");
}

TEST(SessionsTest, TooManyAreRefusedUntilOneCloses) {
  Sessions sessions;
  SessionId last = 0;
  for (std::size_t i = 0; i < Sessions::kMost; ++i) last = sessions.open({}, std::to_string(i), at(0)).value()->id;
  EXPECT_EQ(sessions.open({}, "more", at(0)).error().code, ErrorCode::kResourceExhausted);
  EXPECT_EQ(sessions.plain({1, 2}, "r", at(0)).error().code, ErrorCode::kResourceExhausted);
  EXPECT_EQ(sessions.find_token("more"), nullptr);
  EXPECT_EQ(sessions.size(), Sessions::kMost);
  sessions.close(last);
  EXPECT_TRUE(sessions.plain({1, 2}, "r", at(0)));
  EXPECT_FALSE(sessions.plain({1, 2}, "r", at(0))->is_new);  // the full house keeps those that are in
}

// ---- offers

class OffersTest : public ::testing::Test {
 protected:
  static Fd file() { return Fd(::open("/dev/null", O_RDONLY | O_CLOEXEC)); }
  static bool is_open(int fd) { return ::fcntl(fd, F_GETFD) >= 0; }
  std::string offer(Fd file, int seconds = 0) {
    return Sessions::offer(*session_, std::move(file), at(seconds)).value();
  }

  Sessions sessions_;
  Session* const session_ = sessions_.open({}, "token", at(0)).value();
};

TEST_F(OffersTest, AnOfferIsTakenOnce) {
  Fd one = file();
  const int number = one.get();
  const std::string handle = offer(std::move(one));
  const std::string other = offer(file());
  EXPECT_NE(handle, other);
  {
    const auto taken = Sessions::take_offer(*session_, handle, at(0));
    ASSERT_TRUE(taken);
    EXPECT_EQ(taken->get(), number);
  }
  EXPECT_FALSE(is_open(number));
  for (const std::string& wrong : Blocks{handle, "", "f", "f0", "f01", "f1x", "f99", "g1", "f18446744073709551616"}) {
    EXPECT_EQ(Sessions::take_offer(*session_, wrong, at(0)).error().code, ErrorCode::kNotFound) << wrong;
  }
  EXPECT_TRUE(Sessions::take_offer(*session_, other, at(0)));
}

TEST_F(OffersTest, AHandleIsGoodInItsOwnSessionOnly) {
  Session* const other = sessions_.open({}, "other", at(0)).value();
  const std::string handle = offer(file());
  EXPECT_EQ(Sessions::take_offer(*other, handle, at(0)).error().code, ErrorCode::kNotFound);
  EXPECT_TRUE(Sessions::take_offer(*session_, handle, at(0)));
}

TEST_F(OffersTest, PastTheMostOneIsRefusedUntilAnotherIsUsedOrExpires) {
  constexpr std::size_t kMost = 3;
  const std::string first = offer(file());
  for (std::size_t i = 1; i < kMost; ++i) offer(file(), 10);
  Fd refused = file();
  const int number = refused.get();
  const auto more = Sessions::offer(*session_, std::move(refused), at(29), kMost);
  ASSERT_FALSE(more);
  EXPECT_EQ(more.error().code, ErrorCode::kResourceExhausted);
  EXPECT_THAT(more.error().message, ::testing::HasSubstr("3 file offers"));
  EXPECT_FALSE(is_open(number));
  EXPECT_TRUE(Sessions::take_offer(*session_, first, at(29)));  // no other one was dropped for it
  EXPECT_TRUE(Sessions::offer(*session_, file(), at(29), kMost));
  EXPECT_FALSE(Sessions::offer(*session_, file(), at(39), kMost));
  EXPECT_TRUE(Sessions::offer(*session_, file(), at(40), kMost));
}

TEST_F(OffersTest, AnUnusedOneExpires) {
  Session* const other = sessions_.open({}, "other", at(0)).value();
  Fd one = file();
  const int number = one.get();
  const std::string early = offer(std::move(one));
  const std::string late = offer(file(), 5);
  (void)Sessions::offer(*other, file(), at(3)).value();
  EXPECT_EQ(sessions_.expire_offers(at(29)), at(30));
  EXPECT_TRUE(is_open(number));
  EXPECT_EQ(sessions_.expire_offers(at(30)), at(33));
  EXPECT_FALSE(is_open(number));
  const auto gone = Sessions::take_offer(*session_, early, at(30));
  ASSERT_FALSE(gone);
  EXPECT_EQ(gone.error().code, ErrorCode::kNotFound);
  EXPECT_THAT(gone.error().message, ::testing::HasSubstr("has expired (after 30 s)"));
  // Not before it has, and then also where nobody has closed it yet.
  EXPECT_EQ(sessions_.expire_offers(at(34)), at(35));
  EXPECT_FALSE(Sessions::take_offer(*session_, late, at(35)));
  EXPECT_EQ(sessions_.expire_offers(at(35)), std::nullopt);
}

TEST_F(OffersTest, EndWithTheirSession) {
  Fd one = file();
  const int number = one.get();
  offer(std::move(one));
  ASSERT_TRUE(is_open(number));
  sessions_.close(session_->id);
  EXPECT_FALSE(is_open(number));
}

// ---- leases

TEST(LeaseNumbersTest, ANumberIsNewOnce) {
  struct Case {
    const char* what;
    std::vector<std::uint64_t> used, again, fresh;
    std::uint64_t next;
  };
  constexpr std::uint64_t kHighest = LeaseNumbers::kHighest;
  const std::vector<Case> cases{
      {"none", {}, {}, {0, 1, kHighest}, 1},
      {"upwards", {1, 2, 3}, {1, 2, 3}, {0, 4}, 4},
      {"downwards", {3, 2, 1}, {1, 2, 3}, {0, 4}, 4},
      {"a gap that is filled", {1, 2, 5, 6, 3, 4}, {1, 2, 3, 4, 5, 6}, {0, 7}, 7},
      {"a gap that stays", {10, 12}, {10, 12}, {9, 11, 13}, 13},
      {"the highest", {kHighest}, {kHighest}, {kHighest - 1}, kHighest + 1},
  };
  for (const Case& one : cases) {
    LeaseNumbers numbers;
    for (const std::uint64_t number : one.used) EXPECT_TRUE(numbers.use(number)) << one.what << ": " << number;
    for (const std::uint64_t number : one.again) EXPECT_FALSE(numbers.use(number)) << one.what << ": " << number;
    for (const std::uint64_t number : one.fresh)
      EXPECT_TRUE(LeaseNumbers(numbers).use(number)) << one.what << ": " << number;
    EXPECT_EQ(numbers.use_next(), one.next) << one.what;
    EXPECT_FALSE(numbers.use(one.next)) << one.what;
  }
}

TEST(LeaseNumbersTest, PastTheMostGapsTheLowestCountsAsUsed) {
  LeaseNumbers numbers;
  for (std::uint64_t i = 0; i <= LeaseNumbers::kMostGaps; ++i) EXPECT_TRUE(numbers.use(10 * i));
  EXPECT_TRUE(LeaseNumbers(numbers).use(5));
  EXPECT_TRUE(numbers.use(10 * (LeaseNumbers::kMostGaps + 1)));
  EXPECT_FALSE(numbers.use(5));
  EXPECT_TRUE(numbers.use(15));
}

Lease lease(const Blocks& blocks, pid_t pid = 7, int since = 0) { return {"model", blocks, {1000, pid}, at(since)}; }

TEST(LeaseBookTest, ALeaseHoldsItsBlocksUntilItEnds) {
  LeaseBook book;
  book.grant(1, 1, lease({"a", "b"}));
  book.grant(2, 1, lease({"b"}));
  EXPECT_EQ(book.total(), 2U);
  EXPECT_EQ(book.count("a"), 1U);
  EXPECT_EQ(book.count("b"), 2U);
  EXPECT_EQ(book.count("c"), 0U);
  EXPECT_TRUE(book.holds(1, "a"));
  EXPECT_FALSE(book.holds(2, "a"));
  EXPECT_FALSE(book.holds(3, "b"));
  EXPECT_FALSE(book.holds(1, "c"));
  ASSERT_NE(book.find(1, 1), nullptr);
  EXPECT_EQ(book.find(1, 1)->blocks, (Blocks{"a", "b"}));
  EXPECT_EQ(book.find(1, 2), nullptr);
  EXPECT_EQ(book.find(3, 1), nullptr);

  EXPECT_EQ(book.end(1, 1), (Blocks{"a", "b"}));
  EXPECT_EQ(book.count("a"), 0U);
  EXPECT_EQ(book.count("b"), 1U);
  EXPECT_FALSE(book.holds(1, "b"));
  EXPECT_TRUE(book.holds(2, "b"));
  EXPECT_EQ(book.total(), 1U);
}

TEST(LeaseBookTest, EndingIsIdempotent) {
  LeaseBook book;
  EXPECT_EQ(book.end(1, 1), Blocks{});
  book.grant(1, 1, lease({"a"}));
  EXPECT_EQ(book.end(1, 1), Blocks{"a"});
  EXPECT_EQ(book.end(1, 1), Blocks{});
  EXPECT_EQ(book.end_session(1).leases, 0U);
  EXPECT_EQ(book.total(), 0U);
}

TEST(LeaseBookTest, ASessionsEndEndsItsLeasesAndNoOthers) {
  LeaseBook book;
  book.grant(1, 9, lease({"other"}));
  book.grant(2, 0, lease({"a"}));
  book.grant(2, 5, lease({"a", "b"}));
  book.grant(2, ~std::uint64_t{0}, lease({"c"}));
  book.grant(3, 0, lease({"a"}));
  LeaseBook::Ended ended = book.end_session(2);
  EXPECT_EQ(ended.leases, 3U);
  std::sort(ended.blocks.begin(), ended.blocks.end());
  EXPECT_EQ(ended.blocks, (Blocks{"a", "a", "b", "c"}));
  EXPECT_EQ(book.total(), 2U);
  EXPECT_EQ(book.count("a"), 1U);
  EXPECT_TRUE(book.holds(1, "other"));
  EXPECT_TRUE(book.holds(3, "a"));
  EXPECT_EQ(book.end_session(2).leases, 0U);
  EXPECT_EQ(book.end_session(~SessionId{0}).leases, 0U);
}

TEST(LeaseBookTest, TwoLeasesOfOneSessionOnOneBlockAreTwo) {
  LeaseBook book;
  book.grant(1, 1, lease({"a"}));
  book.grant(1, 2, lease({"a"}));
  EXPECT_EQ(book.count("a"), 2U);
  (void)book.end(1, 1);
  EXPECT_TRUE(book.holds(1, "a"));
  EXPECT_EQ(book.count("a"), 1U);
}

TEST(LeaseBookTest, ARepeatedRestatementReplacesTheLease) {
  LeaseBook book;
  book.grant(1, 1, lease({"a", "b"}));
  book.grant(1, 1, lease({"b", "c"}));
  EXPECT_EQ(book.total(), 1U);
  EXPECT_EQ(book.count("a"), 0U);
  EXPECT_EQ(book.count("b"), 1U);
  EXPECT_EQ(book.count("c"), 1U);
}

TEST(LeaseBookTest, ABlockNamedTwiceIsHeldOnce) {
  LeaseBook book;
  book.grant(1, 1, lease({"a", "a"}));
  EXPECT_EQ(book.count("a"), 1U);
  (void)book.end(1, 1);
  EXPECT_EQ(book.count("a"), 0U);
  EXPECT_FALSE(book.holds(1, "a"));
}

TEST(LeaseBookTest, HoldersAreToldInOrder) {
  LeaseBook book;
  book.grant(2, 1, lease({"a"}, 30, 300));
  book.grant(1, 2, lease({"a", "b"}, 20, 200));
  book.grant(1, 1, lease({"a"}, 10, 100));
  const auto holders = book.holders({"a"});
  ASSERT_EQ(holders.size(), 3U);
  EXPECT_EQ(holders[0].peer.pid, 10);
  EXPECT_EQ(holders[0].number, 1U);
  EXPECT_EQ(holders[0].since, at(100));
  EXPECT_EQ(holders[1].peer.pid, 20);
  EXPECT_EQ(holders[1].number, 2U);
  EXPECT_EQ(holders[2].peer.pid, 30);
  EXPECT_EQ(holders[2].peer.uid, 1000U);
  EXPECT_TRUE(book.holders({"c"}).empty());
}

}  // namespace
}  // namespace modelbroker
