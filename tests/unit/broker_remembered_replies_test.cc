#include "broker/doors/remembered_replies.h"

#include <gtest/gtest.h>

namespace modelbroker {
namespace {

constexpr std::size_t kEntry = RememberedReplies::kEntryBytes + 2 + 100;  // with the ids and replies of these tests

std::string id(int number) { return {static_cast<char>('a' + number / 26), static_cast<char>('a' + number % 26)}; }
std::string reply(int number) { return std::string(100, static_cast<char>('0' + number % 10)); }

TEST(RememberedRepliesTest, AReplyIsKnownByItsSessionAndRequest) {
  RememberedReplies replies;
  replies.add(1, id(1), reply(1));
  replies.add(2, id(1), reply(2));
  replies.add(1, id(1), reply(3));  // the first stays
  ASSERT_NE(replies.find(1, id(1)), nullptr);
  EXPECT_EQ(*replies.find(1, id(1)), reply(1));
  EXPECT_EQ(*replies.find(2, id(1)), reply(2));
  EXPECT_EQ(replies.find(1, id(2)), nullptr);
  EXPECT_EQ(replies.find(3, id(1)), nullptr);
  EXPECT_EQ(replies.bytes(), 2 * kEntry);
}

TEST(RememberedRepliesTest, WhatASessionWasToldGoesWithIt) {
  RememberedReplies replies;
  replies.add(1, id(1), reply(1));
  replies.add(1, id(2), reply(2));
  replies.add(2, id(1), reply(3));
  replies.forget(1);
  replies.forget(1);
  EXPECT_EQ(replies.find(1, id(1)), nullptr);
  EXPECT_NE(replies.find(2, id(1)), nullptr);
  EXPECT_EQ(replies.bytes(), kEntry);
  replies.forget(2);
  EXPECT_EQ(replies.bytes(), 0U);
}

TEST(RememberedRepliesTest, PastTheBoundTheOldestGoesFirst) {
  RememberedReplies replies(3 * kEntry);
  for (int i = 0; i < 5; ++i) replies.add(1, id(i), reply(i));
  EXPECT_EQ(replies.bytes(), 3 * kEntry);
  for (int i = 0; i < 5; ++i) EXPECT_EQ(replies.find(1, id(i)) != nullptr, i >= 2) << i;
}

TEST(RememberedRepliesTest, ASessionThatAsksALotPushesOutItsOwnAlone) {
  RememberedReplies replies(10 * kEntry);
  for (SessionId quiet = 2; quiet <= 4; ++quiet) replies.add(quiet, id(0), reply(0));
  for (int i = 0; i < 600; ++i) replies.add(1, id(i), reply(i));
  for (SessionId quiet = 2; quiet <= 4; ++quiet) EXPECT_NE(replies.find(quiet, id(0)), nullptr) << quiet;
  for (int i = 0; i < 600; ++i) EXPECT_EQ(replies.find(1, id(i)) != nullptr, i >= 593) << i;
  // As many as it has: it is not the quiet ones' turn before the loud one has no more than they.
  for (SessionId other = 5; other <= 10; ++other) replies.add(other, id(0), reply(0));
  for (SessionId each = 1; each <= 10; ++each) EXPECT_NE(replies.find(each, id(each == 1 ? 599 : 0)), nullptr) << each;
  EXPECT_EQ(replies.bytes(), 10 * kEntry);
}

TEST(RememberedRepliesTest, OneThatIsTooLongIsNotKept) {
  RememberedReplies replies(3 * kEntry);
  replies.add(1, id(0), reply(0));
  replies.add(2, id(0), std::string(3 * kEntry, 'x'));
  EXPECT_NE(replies.find(1, id(0)), nullptr);
  EXPECT_EQ(replies.find(2, id(0)), nullptr);
  EXPECT_EQ(replies.bytes(), kEntry);
  replies.add(2, id(1), reply(1));
  EXPECT_NE(replies.find(2, id(1)), nullptr);
}

}  // namespace
}  // namespace modelbroker
