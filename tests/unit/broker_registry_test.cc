// Models and their names: how they are found, and what a change of one does.
#include "broker/models/registry.h"

#include <gtest/gtest.h>

#include "tests/support/block_fixture.h"
#include "tests/support/fake_events.h"

namespace modelbroker {
namespace {

using Names = std::vector<std::string>;
using Events = std::vector<std::string>;

class RegistryTest : public testing::BlockFixture {
 protected:
  RegistryTest() {
    models_.observe({nullptr, &events_, [this](const ModelEntry& model) { woken_.push_back(model.id); }});
  }

  RamBlock& block() {
    RamBlock block(make({.generation = ++generation_}));
    block.sources.push_back({"/models/" + std::to_string(generation_), {1, generation_, 10'000, 5, 6}});
    return blocks_.add(std::move(block));
  }
  // A model of one block; its names were given to the file at `path`.
  ModelEntry& add(const Names& names, const std::string& path) {
    RamBlock& part = block();
    ModelEdit edit{.id = part.id(), .parts = {&part}, .path = path};
    for (const std::string& name : names) edit.names.push_back({name, {.loader = 7, .path = path}});
    apply(Why::kAdopted, {edit});
    events_.published.clear();
    woken_.clear();
    return *models_.find_id(part.id());
  }
  void apply(Why why, std::vector<ModelEdit> edits, const std::string& told = "") {
    models_.apply({.why = why, .edits = std::move(edits), .told = told});
  }

  RamBlocks blocks_{*os_};
  Registry models_;
  testing::FakeEvents events_;
  std::vector<std::string> woken_;
  std::uint64_t generation_ = 0;
};

// ---- finding

TEST_F(RegistryTest, AModelIsFoundByIdNameAndPath) {
  ModelEntry& one = add({"one", "eins"}, "/one");
  ModelEntry& two = add({"two"}, "/two");
  EXPECT_EQ(models_.find_id(one.id), &one);
  EXPECT_EQ(models_.find_id(one.parts.front()->id()), &one);
  EXPECT_EQ(models_.by_name("eins"), &one);
  EXPECT_EQ(models_.by_path("/two"), &two);
  EXPECT_EQ(models_.find("one"), &one);
  EXPECT_EQ(models_.find("/one"), &one);
  for (const char* const absent : {"", "three", "/three", "One", "/one/"}) {
    EXPECT_EQ(models_.find(absent), nullptr) << absent;
  }
  EXPECT_EQ(models_.loader_of("eins"), 7U);
  EXPECT_EQ(models_.loader_of("absent"), 0U);
}

TEST_F(RegistryTest, TheNewestGenerationOfAPathIsTheOneMeantAndALabelIsNone) {
  ModelEntry& older = add({"old"}, "/same");
  ModelEntry& newer = add({"new"}, "/same");
  EXPECT_EQ(models_.by_path("/same"), &newer);
  apply(Why::kNamed, {{.id = newer.id, .names = {{"new", {.path = "/same", .is_label = true}}}}});
  EXPECT_EQ(models_.by_path("/same"), &older);
  EXPECT_EQ(models_.by_name("new"), &newer);
  EXPECT_EQ(newer.names, Names{"new"});  // told again, not given twice
}

// ---- changing

TEST_F(RegistryTest, WhatALoadChangesIsIndexedToldAndSeen) {
  RamBlock& part = block();
  apply(Why::kLoaded,
        {{.id = part.id(),
          .parts = {&part},
          .names = {{"m", {.path = "/m"}}, {"more", {.path = "/more"}}},
          .type = "unet",
          .path = "/m",
          .pinned = true,
          .keep_alive = Duration(9)}},
        "m");
  const ModelEntry& model = *models_.by_name("more");
  EXPECT_EQ(model.type, "unet");
  EXPECT_EQ(model.keep_alive, Duration(9));
  EXPECT_EQ(part.models, 1);
  EXPECT_EQ(events_.published, (Events{"model.loaded m", "model.alias more", "model.pinned m"}));
  EXPECT_EQ(woken_, Names{part.id()});
}

TEST_F(RegistryTest, ANameThatIsTakenLeavesTheOthersAndItsPath) {
  ModelEntry& model = add({"one", "copy"}, "/one");
  apply(Why::kNamed, {{.id = model.id, .names = {{"copy", {.path = "/copy"}}}}});
  blocks_.confirm(*model.parts.front(), "/copy", {2, 2, 10'000, 5, 6});
  apply(Why::kUnloaded, {{.id = model.id, .without = {"one", "never"}}});
  EXPECT_EQ(model.names, Names{"copy"});
  EXPECT_EQ(model.path, "/copy");  // no name leads to the other file any more
  EXPECT_EQ(model.parts.front()->path(), "/copy");
  EXPECT_EQ(models_.find("one"), nullptr);
  EXPECT_EQ(models_.find("/one"), nullptr);
  EXPECT_EQ(events_.published.front(), "model.unloaded one");
}

TEST_F(RegistryTest, NamesMoveToANewGenerationAndTheOldOneEnds) {
  ModelEntry& older = add({"one", "eins"}, "/one");
  const std::string id = older.id;
  RamBlock& old_part = *older.parts.front();
  RamBlock& part = block();
  apply(Why::kLoaded,
        {{.id = id, .without = older.names},
         {.id = part.id(), .parts = {&part}, .names = {{"one", {.path = "/one"}}, {"eins", {.path = "/one"}}}}},
        "one");
  EXPECT_EQ(models_.find_id(id), nullptr);
  EXPECT_EQ(old_part.models, 0);
  EXPECT_TRUE(old_part.unwanted());
  EXPECT_EQ(models_.by_path("/one"), models_.find_id(part.id()));
  EXPECT_EQ(events_.published, (Events{"model.loaded one", "model.alias eins"}));
  EXPECT_EQ(models_.remembered().find("one"), nullptr);
}

TEST_F(RegistryTest, OnlyEvictedAndDamagedModelsAreRememberedByTheirNames) {
  for (const Why why : {Why::kUnloaded, Why::kEvicted, Why::kDamaged}) {
    ModelEntry& model = add({"one", "eins"}, "/one");
    const FileIdentity source = model.parts.front()->source();
    apply(why, {{.id = model.id, .without = model.names}});
    EXPECT_TRUE(models_.all().empty());
    ASSERT_EQ(models_.remembered().find("eins") != nullptr, why != Why::kUnloaded);
    EXPECT_EQ(events_.published.size(), 1U);
    if (why == Why::kUnloaded) continue;
    EXPECT_EQ(models_.remembered().find("one")->source, source);
    EXPECT_EQ(models_.remembered().find("one")->given.loader, 7U);
  }
  add({"one"}, "/one");  // in one place at any time
  EXPECT_EQ(models_.remembered().find("one"), nullptr);
  EXPECT_NE(models_.remembered().find("eins"), nullptr);
}

TEST_F(RegistryTest, AModelOfSeveralBlocksSharesThemAndEndsAlone) {
  RamBlock& first = block();
  RamBlock& second = block();
  apply(Why::kLoaded, {{.id = "set", .parts = {&first, &second}, .names = {{"whole", {.path = "/index"}}}}}, "whole");
  apply(Why::kLoaded, {{.id = second.id(), .parts = {&second}, .names = {{"part", {.path = "/part"}}}}}, "part");
  const ModelEntry& whole = *models_.by_name("whole");
  EXPECT_EQ(whole.bytes(), first.bytes() + second.bytes());
  EXPECT_EQ(whole.generation(), second.generation());
  EXPECT_EQ(second.models, 2);
  EXPECT_EQ(models_.with_block(second).size(), 2U);
  EXPECT_EQ(models_.find_id(second.id()), models_.by_name("part"));
  EXPECT_EQ(models_.find_id(first.id()), nullptr);
  second.is_private = true;
  EXPECT_TRUE(whole.is_private());
  apply(Why::kUnloaded, {{.id = "set", .without = {"whole"}}});
  EXPECT_TRUE(first.unwanted());
  EXPECT_EQ(second.models, 1);
  EXPECT_EQ(models_.with_block(first).size(), 0U);
}

TEST_F(RegistryTest, TheTenThousandthModelIsFoundAsTheFirst) {
  RamBlock& shared = block();
  for (int i = 0; i < 10'000; ++i) {
    const std::string number = std::to_string(i);
    apply(Why::kAdopted, {{.id = number, .parts = {&shared}, .names = {{"m" + number, {.path = "/" + number}}}}});
  }
  for (const char* const number : {"0", "4711", "9999"}) {
    EXPECT_EQ(models_.by_path("/" + std::string(number))->id, number);
    EXPECT_EQ(models_.by_name("m" + std::string(number))->id, number);
  }
}

}  // namespace
}  // namespace modelbroker
