// The books of the RAM tier: who has which name, what it costs, and what draining changes.
#include <gtest/gtest.h>

#include "broker/models/store.h"
#include "tests/support/block_fixture.h"
#include "tests/support/faulty_os.h"

namespace modelbroker {
namespace {

class RamStoreTest : public testing::BlockFixture {
 protected:
  // A resident block with these names, of a source of its own.
  Resident& add(const std::vector<std::string>& names, std::uint64_t payload_size = 10'000) {
    return add(store_, names, payload_size);
  }
  Resident& add(RamStore& store, const std::vector<std::string>& names, std::uint64_t payload_size = 10'000) {
    const std::uint64_t generation = ++generation_;
    Resident resident;
    resident.block = std::make_shared<Block>(make({.payload_size = payload_size, .generation = generation}));
    resident.names = names;
    resident.path = "/models/" + std::to_string(generation);
    resident.source = source(generation);
    return store.add(std::move(resident));
  }
  static FileIdentity source(std::uint64_t number) { return {1, number, 10'000, 5, 6}; }

  RamStore store_{*os_};
  std::uint64_t generation_ = 0;
};

// ---- finding

TEST_F(RamStoreTest, ABlockIsFoundByIdNameAndPath) {
  Resident& one = add({"one", "eins"});
  Resident& two = add({"two"});
  EXPECT_EQ(store_.by_block(one.block->id()), &one);
  EXPECT_EQ(store_.by_name("one"), &one);
  EXPECT_EQ(store_.by_name("eins"), &one);
  EXPECT_EQ(store_.by_name("two"), &two);
  EXPECT_EQ(store_.by_path("/models/2"), &two);
  EXPECT_EQ(store_.find("eins"), &one);
  EXPECT_EQ(store_.find("/models/1"), &one);
  for (const char* const absent : {"", "three", "/models/3", "One", "/models/1/"}) {
    EXPECT_EQ(store_.find(absent), nullptr) << absent;
  }
  EXPECT_EQ(store_.by_block("absent"), nullptr);
  EXPECT_EQ(store_.by_path(""), nullptr);
}

TEST_F(RamStoreTest, TheNewestGenerationOfAPathIsTheOneMeant) {
  add({"old"});
  store_.set_path("old", "/same", false);
  Resident& newer = add({"new"});
  store_.set_path("new", "/same", false);
  EXPECT_EQ(store_.by_path("/same"), &newer);
  ASSERT_TRUE(store_.drain(newer));
  EXPECT_EQ(store_.by_path("/same"), store_.by_name("old"));
}

TEST_F(RamStoreTest, ASourceIsTheFileInExactlyThisState) {
  Resident& one = add({"one"});
  EXPECT_EQ(store_.by_source(source(1)), &one);
  EXPECT_EQ(store_.alike(source(1)), std::vector<Resident*>{&one});
  for (FileIdentity other : {FileIdentity{1, 1, 10'000, 5, 7}, FileIdentity{2, 1, 10'000, 5, 6},
                             FileIdentity{1, 2, 10'000, 5, 6}, FileIdentity{8, 9, 10'000, 5, 7}}) {
    EXPECT_EQ(store_.by_source(other), nullptr);
    EXPECT_EQ(store_.alike(other), std::vector<Resident*>{&one});
  }
  for (FileIdentity other : {FileIdentity{1, 1, 10'001, 5, 6}, FileIdentity{1, 1, 10'000, 4, 6}}) {
    EXPECT_EQ(store_.by_source(other), nullptr);
    EXPECT_TRUE(store_.alike(other).empty());
  }
}

TEST_F(RamStoreTest, WhatWasConfirmedIsKnownAtEachPathAsItWasLast) {
  Resident& one = add({"one"});
  one.path = "/one";
  const FileIdentity first{1, 1, 10'000, 5, 6}, second{1, 2, 10'000, 5, 6}, copy{2, 1, 10'000, 5, 6};
  one.confirm("/one", second);
  EXPECT_EQ(store_.by_source(second), &one);
  EXPECT_EQ(store_.by_source(first), nullptr);
  one.confirm("/copy", first);
  one.confirm("/copy", copy);
  EXPECT_EQ(store_.by_source(second), &one);
  EXPECT_EQ(store_.by_source(copy), &one);
  EXPECT_EQ(store_.by_source(first), nullptr);
  for (std::uint64_t i = 0; i < 100; ++i) one.confirm("/copy" + std::to_string(i), {9, i, 10'000, 5, 6});
  EXPECT_LE(one.copies.size(), 16U);
  EXPECT_EQ(store_.by_source(second), &one);
}

TEST_F(RamStoreTest, TheBestOfThoseAlikeComesFirst) {
  Resident& a = add({"a"});
  Resident& b = add({"b"});
  Resident& c = add({"c"});
  a.source = b.source = c.source = source(1);
  ASSERT_TRUE(store_.drain(c));
  EXPECT_EQ(store_.alike(source(1)), (std::vector<Resident*>{&b, &a, &c}));
  b.damaged = true;
  EXPECT_EQ(store_.alike(source(1)), (std::vector<Resident*>{&a, &c}));
}

TEST_F(RamStoreTest, ASourceIsFoundResidentBeforeDrainingAndNotWhileItIsRemoved) {
  Resident& draining = add({"a"});
  Resident& resident = add({"b"});
  Resident& newest = add({"c"});
  resident.source = newest.source = draining.source;
  EXPECT_EQ(store_.by_source(source(1)), &newest);
  ASSERT_TRUE(store_.drain(newest));
  EXPECT_EQ(store_.by_source(source(1)), &resident);
  ASSERT_TRUE(store_.drain(resident));
  ASSERT_TRUE(store_.drain(draining));
  EXPECT_EQ(store_.by_source(source(1)), &newest);
  newest.removing = true;
  EXPECT_EQ(store_.by_source(source(1)), &resident);
  resident.removing = draining.removing = true;
  EXPECT_EQ(store_.by_source(source(1)), nullptr);
}

// ---- names

TEST_F(RamStoreTest, ANameBelongsToOneBlock) {
  Resident& one = add({"one"});
  Resident& two = add({"two"});
  EXPECT_TRUE(store_.add_name(one, "more", {.path = "/models/1"}));
  EXPECT_TRUE(store_.add_name(one, "more"));  // again changes nothing
  EXPECT_EQ(one.names, (std::vector<std::string>{"one", "more"}));
  const auto refused = store_.add_name(two, "more");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kAlreadyExists);
  EXPECT_NE(refused.error().message.find("'more' belongs to '/models/1'"), std::string::npos);
  EXPECT_EQ(two.names, std::vector<std::string>{"two"});
  EXPECT_EQ(store_.by_name("more"), &one);
}

TEST_F(RamStoreTest, ARemovedNameIsFree) {
  Resident& one = add({"one", "eins"});
  Resident& two = add({"two"});
  store_.remove_name(one, "one");
  EXPECT_EQ(one.names, std::vector<std::string>{"eins"});
  EXPECT_EQ(store_.by_name("one"), nullptr);
  store_.remove_name(one, "never");
  EXPECT_TRUE(store_.add_name(two, "one"));
  EXPECT_EQ(store_.by_name("one"), &two);
}

TEST_F(RamStoreTest, NamesAndPinMoveToANewGeneration) {
  Resident& from = add({"one", "eins"});
  from.pinned = true;
  Resident& to = add({"new"});
  store_.move_names(from, to, "/models/1");
  EXPECT_TRUE(from.names.empty());
  EXPECT_FALSE(from.pinned);
  EXPECT_EQ(to.names, (std::vector<std::string>{"new", "one", "eins"}));
  EXPECT_TRUE(to.pinned);
  EXPECT_EQ(store_.by_name("eins"), &to);
  ASSERT_TRUE(store_.drain(from));
  EXPECT_EQ(store_.by_name("one"), &to);
  store_.erase(from.block->id());
  EXPECT_EQ(store_.by_name("one"), &to);
}

TEST_F(RamStoreTest, OnlyTheNamesOfAPathMove) {
  Resident& from = add({"one", "link"});
  store_.set_path("link", "/link", false);
  from.pinned = true;
  Resident& to = add({"new"});
  store_.move_names(from, to, "/link");
  EXPECT_EQ(from.names, std::vector<std::string>{"one"});
  EXPECT_EQ(to.names, (std::vector<std::string>{"new", "link"}));
  EXPECT_TRUE(from.pinned && to.pinned);
  EXPECT_EQ(store_.by_path("/models/1"), &from);
  EXPECT_EQ(store_.by_path("/link"), &to);
  store_.set_path("link", "/link", /*is_label=*/true);
  EXPECT_EQ(store_.by_path("/link"), nullptr);
  EXPECT_EQ(store_.by_name("link"), &to);
}

TEST_F(RamStoreTest, ANameThatWasAskedForAgainIsAsYoungAsThat) {
  Resident& one = add({"one", "link"});
  store_.set_path("link", "/link", false);
  store_.asked_again(one, "/link", 5);
  store_.asked_again(one, "/link", 4);
  EXPECT_EQ(store_.given("link").asked, 5U);
  EXPECT_EQ(store_.given("one").asked, 0U);
}

// ---- draining

TEST_F(RamStoreTest, ADrainingBlockHasNoNamesAndAnotherFileName) {
  Resident& one = add({"one", "eins"});
  one.pinned = true;
  const std::string id = one.block->id();
  ASSERT_TRUE(store_.drain(one));
  EXPECT_TRUE(one.draining());
  EXPECT_TRUE(one.names.empty());
  EXPECT_FALSE(one.pinned);
  EXPECT_EQ(store_.find("one"), nullptr);
  EXPECT_EQ(store_.find("/models/1"), nullptr);
  EXPECT_EQ(store_.by_block(id), &one);
  EXPECT_EQ(files(), std::vector<std::string>{id + ".drain"});
  EXPECT_TRUE(store_.drain(one));  // again changes nothing

  ASSERT_TRUE(store_.revive(one));
  EXPECT_FALSE(one.draining());
  EXPECT_EQ(files(), std::vector<std::string>{id});
  EXPECT_EQ(store_.find("/models/1"), nullptr);  // before it has a name
  EXPECT_TRUE(store_.add_name(one, "one", {.path = "/models/1"}));
  EXPECT_EQ(store_.find("/models/1"), &one);
}

TEST_F(RamStoreTest, AFailedRenameKeepsWhatWas) {
  testing::FaultyOs faulty(*os_);
  RamStore store(faulty);
  Resident& one = add(store, {"one"});
  one.pinned = true;
  faulty.fail_at(1, EACCES);
  EXPECT_EQ(store.drain(one).error().code, ErrorCode::kPermissionDenied);
  EXPECT_FALSE(one.draining());
  EXPECT_TRUE(one.pinned);
  EXPECT_EQ(store.by_name("one"), &one);
  EXPECT_EQ(files(), std::vector<std::string>{one.block->id()});
  ASSERT_TRUE(store.drain(one));
  faulty.fail_at(1, EACCES);
  EXPECT_EQ(store.revive(one).error().code, ErrorCode::kPermissionDenied);
  EXPECT_TRUE(one.draining());
  EXPECT_EQ(files(), std::vector<std::string>{one.block->id() + ".drain"});
}

TEST_F(RamStoreTest, ErasingForgetsTheBlockAndFreesItsNamesAndTouchesNoFile) {
  Resident& one = add({"one"});
  const std::string id = one.block->id();
  store_.erase(id);
  EXPECT_TRUE(store_.all().empty());
  EXPECT_EQ(store_.find("one"), nullptr);
  EXPECT_EQ(store_.find("/models/1"), nullptr);
  EXPECT_EQ(files(), std::vector<std::string>{id});
  store_.erase(id);
  EXPECT_EQ(store_.by_name("one"), nullptr);
  const Resident& again = add({"one"});
  EXPECT_EQ(store_.by_name("one"), &again);
}

// ---- counting

TEST_F(RamStoreTest, TotalsAreWhatTheKernelCounts) {
  EXPECT_EQ(store_.totals().made, 0U);
  Resident& small = add({"small"}, 10'000);
  Resident& large = add({"large"}, 5 * testing::kMiB);
  const std::uint64_t both = small.block->bytes_held() + large.block->bytes_held();
  large.pinned = true;
  RamStore::Totals totals = store_.totals();
  EXPECT_EQ(totals.made, both);
  EXPECT_EQ(totals.draining, 0U);
  EXPECT_EQ(totals.pinned, large.bytes());
  EXPECT_EQ(totals.models, 2U);
  ASSERT_TRUE(store_.drain(large));
  totals = store_.totals();
  EXPECT_EQ(totals.made, small.bytes());
  EXPECT_EQ(totals.draining, large.bytes());
  EXPECT_EQ(totals.pinned, 0U);
  EXPECT_EQ(totals.models, 1U);
}

}  // namespace
}  // namespace modelbroker
