// Models of several files: loaded, named, shared, evicted and found again after a restart, by services with fake calls.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <initializer_list>
#include <numeric>
#include <ranges>
#include <string>
#include <utility>
#include <vector>

#include "broker/models/recovery.h"
#include "tests/support/house.h"
#include "tests/support/safetensors_file.h"

namespace modelbroker {
namespace {

using testing::kMiB;

constexpr std::size_t kShard = 100'000;  // bytes; its block is compact, 4 KiB pages

class SetsTest : public testing::HouseFixture {
 protected:
  void SetUp() override {
    HouseFixture::SetUp();
    std::filesystem::create_directories(at("llama"));
    for (int i = 0; i < 4; ++i) write_shard(i, static_cast<char>('a' + i));
    write_index("llama/model.safetensors.index.json", {0, 1, 2, 3});
  }

  [[nodiscard]] std::string at(const std::string& name) const { return files_ / name; }
  static std::string shard(int i) { return "part-" + std::to_string(i) + ".safetensors"; }
  static std::string tensor(int i) { return "layer." + std::to_string(i); }
  void write_shard(int i, char fill) {
    testing::write_file(
        at("llama/" + shard(i)),
        testing::safetensors_bytes("{" + testing::u8_tensor(tensor(i), 0, kShard) + "}", std::string(kShard, fill)));
  }
  void write_index(const std::string& name, std::initializer_list<int> shards) {
    std::string map;
    for (const int i : shards) map += (map.empty() ? "\"" : ",\"") + tensor(i) + "\":\"" + shard(i) + "\"";
    testing::write_file(at(name), R"({"metadata":{"total_size":1},"weight_map":{)" + map + "}}");
  }
  [[nodiscard]] std::string index() const { return at("llama/model.safetensors.index.json"); }

  Result<wire::LoadModelReply> load(const std::string& path, const std::string& name = "") {
    wire::LoadModel request;
    request.path = path;
    request.name = name;
    return ask(rooms_->model_service, &ModelService::load, session(), request);
  }
  wire::LoadModelReply loaded(const std::string& path, const std::string& name = "") { return value(load(path, name)); }
  wire::UnloadModelReply unload(const std::string& model) {
    wire::UnloadModel request;
    request.model = model;
    return value(ask(rooms_->model_service, &ModelService::unload, session(), request));
  }
  wire::ModelListReply list() {
    return value(ask(rooms_->model_service, &ModelService::list, session(), wire::ModelList{}));
  }
  [[nodiscard]] std::vector<std::string> names() {
    std::vector<std::string> names;
    for (const wire::ModelInfo& model : list().models) names.push_back(model.name);
    return names;
  }
  [[nodiscard]] static std::vector<std::string> ids(const std::vector<wire::ModelBlock>& blocks) {
    std::vector<std::string> ids;
    for (const wire::ModelBlock& block : blocks) ids.push_back(block.block);
    return ids;
  }
  [[nodiscard]] std::uint64_t made() const { return rooms_->tier.use().made; }

  const testing::TempDirectory files_;
};

TEST_F(SetsTest, ASetIsOneModelWithABlockForEachFile) {
  const wire::LoadModelReply reply = loaded(index());
  EXPECT_EQ(reply.model, "llama");
  EXPECT_EQ(reply.outcome, "loaded");
  EXPECT_EQ(reply.block + reply.page_kind, "");
  ASSERT_EQ(reply.blocks.size(), 4U);
  EXPECT_EQ(reply.payload_bytes, 4 * kShard);
  std::uint64_t bytes = 0, highest = 0;
  for (int i = 0; i < 4; ++i) {
    const wire::ModelBlock& block = reply.blocks[static_cast<std::size_t>(i)];
    EXPECT_EQ(block.source, at("llama/" + shard(i)));
    EXPECT_EQ(block.path, folder_ / block.block);
    EXPECT_EQ(block.payload_bytes, kShard);
    bytes += block.bytes;
    highest = std::max(highest, block.generation);
  }
  EXPECT_EQ(reply.bytes, bytes);
  EXPECT_EQ(reply.generation, highest);
  const wire::ModelInfo model = list().models.at(0);
  EXPECT_EQ(model.path, index());
  EXPECT_EQ(model.tensors, 4U);
  EXPECT_EQ(model.blocks, reply.blocks);
  EXPECT_EQ(model.block + model.block_path + model.page_kind, "");
  const auto event = std::ranges::find(events_.published, "model.loaded llama");
  ASSERT_NE(event, events_.published.end());
  EXPECT_EQ(events_.told[static_cast<std::size_t>(event - events_.published.begin())].blocks, reply.blocks);
}

TEST_F(SetsTest, AnAttachGrantsAllItsBlocksInOrder) {
  const std::vector<std::string> blocks = ids(loaded(index()).blocks);
  for (const std::string& model : {std::string("llama"), index()}) {
    wire::Attach request;
    request.model = model;
    const auto granted = value(ask(rooms_->leases, &LeaseService::attach, session(), request));
    EXPECT_EQ(granted.outcome, "resident");
    std::vector<std::string> got;
    for (const wire::BlockGrant& grant : granted.blocks) got.push_back(grant.block);
    EXPECT_EQ(got, blocks);
  }
  EXPECT_EQ(list().models.at(0).leases.size(), 2U);  // a lease each, not one for each block
}

TEST_F(SetsTest, AFileThatIsResidentIsNotReadAgainAndCountsOnce) {
  const auto alone = loaded(at("llama/" + shard(2)), "alone");
  const std::uint64_t one = made();
  const auto set = loaded(index());
  EXPECT_EQ(facts_->env.counters.loads, 4U);
  EXPECT_EQ(set.blocks[2].block, alone.block);
  EXPECT_EQ(made(), 4 * one);
  EXPECT_EQ(unload("alone").freed, 0U);  // the set has its bytes
  EXPECT_EQ(loaded(at("llama/" + shard(2)), "again").outcome, "resident");
  EXPECT_EQ(unload("llama").freed, 3 * one);
  EXPECT_EQ(names(), std::vector<std::string>{"again"});
}

TEST_F(SetsTest, TheSameFilesByAnotherIndexAreOneModelWithTwoNames) {
  const auto first = loaded(index());
  write_index("llama/other.safetensors.index.json", {3, 2, 1, 0});
  const auto second = loaded(at("llama/other.safetensors.index.json"));
  EXPECT_EQ(second.model, "other");
  EXPECT_EQ(second.outcome, "alias");
  EXPECT_EQ(ids(second.blocks), ids(first.blocks));
  const wire::ModelInfo model = list().models.at(0);
  EXPECT_EQ(model.name, "llama");
  EXPECT_EQ(model.aliases, std::vector<std::string>{"other"});
}

TEST_F(SetsTest, AModelOfSomeOfTheFilesIsAnotherModel) {
  loaded(index());
  write_index("llama/half.safetensors.index.json", {0, 1});
  const auto half = loaded(at("llama/half.safetensors.index.json"));
  EXPECT_EQ(half.model, "half");
  EXPECT_EQ(half.outcome, "resident");
  EXPECT_EQ(facts_->env.counters.loads, 4U);
  EXPECT_EQ(names(), (std::vector<std::string>{"half", "llama"}));
}

TEST_F(SetsTest, AChangedFileMakesANewGenerationThatSharesTheOthers) {
  const auto before = loaded(index(), "mine");
  write_shard(1, 'x');
  const auto after = loaded(index());
  EXPECT_EQ(after.model, "mine");  // names follow the files
  EXPECT_EQ(after.outcome, "loaded");
  EXPECT_EQ(facts_->env.counters.loads, 5U);
  for (const std::size_t i : {0U, 2U, 3U}) EXPECT_EQ(after.blocks[i], before.blocks[i]);
  EXPECT_NE(after.blocks[1].block, before.blocks[1].block);
  EXPECT_GT(after.generation, before.generation);
  EXPECT_EQ(names(), std::vector<std::string>{"mine"});
  turn_until([&] { return facts_->ram.blocks.all().size() == 4; });  // nobody had the old one
}

TEST_F(SetsTest, RoomIsAskedForOnceForAllThatIsMissing) {
  const std::uint64_t block = loaded(at("llama/" + shard(0)), "alone").bytes;
  facts_->ram.budget.set_limit(4 * block - 1);
  const auto refused = load(index());
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kResourceExhausted);
  EXPECT_EQ(refused.error().details.at("needed"), 3 * block);
  EXPECT_EQ(facts_->env.counters.loads, 1U);
  EXPECT_EQ(names(), std::vector<std::string>{"alone"});
  EXPECT_EQ(made(), block);
  facts_->ram.budget.set_limit(4 * block);
  EXPECT_EQ(loaded(index()).blocks.size(), 4U);
}

TEST_F(SetsTest, EvictionTakesAModelWholeAndItsNameIsRemembered) {
  const auto set = loaded(index());
  facts_->ram.budget.set_limit(set.bytes);
  testing::write_file(at("m.safetensors"),
                      testing::safetensors_bytes("{" + testing::u8_tensor("m", 0, 8) + "}", "12345678"));
  loaded(at("m.safetensors"));
  EXPECT_EQ(names(), std::vector<std::string>{"m"});
  EXPECT_EQ(facts_->env.counters.evictions, 1U);
  unload("m");
  wire::Attach request;
  request.model = "llama";
  EXPECT_EQ(value(ask(rooms_->leases, &LeaseService::attach, session(), request)).blocks.size(), 4U);
}

TEST_F(SetsTest, ADamagedBlockEndsTheModelAndItsOthersWaitForTheNextLoad) {
  const auto set = loaded(index());
  rooms_->withdrawal.damaged(*facts_->ram.blocks.find(set.blocks[1].block), {});
  turn_until([&] { return facts_->ram.blocks.all().size() == 3; });
  EXPECT_EQ(names(), std::vector<std::string>());
  for (const wire::ModelInfo& block : list().draining) EXPECT_EQ(block.state, "incomplete");
  const auto again = loaded(index());
  EXPECT_EQ(facts_->env.counters.loads, 5U);
  EXPECT_EQ(again.blocks[0], set.blocks[0]);
}

// ---- what is not a model

struct BadSet {
  const char* name;
  ErrorCode code;
  const char* says;  // part of the message
  std::function<void(const std::string& folder)> spoil;
};

const std::vector<BadSet>& bad_sets() {
  static const auto index = [](const std::string& folder, const std::string& text) {
    testing::write_file(folder + "/model.safetensors.index.json", text);
  };
  static const std::vector<BadSet> rows{
      {"an index that is not JSON", ErrorCode::kDataLoss, "is not JSON",
       [](const auto& folder) { index(folder, "{weights"); }},
      {"no weight_map", ErrorCode::kDataLoss, "weight_map", [](const auto& folder) { index(folder, "{}"); }},
      {"a file elsewhere", ErrorCode::kInvalidArgument, "../x",
       [](const auto& folder) { index(folder, R"({"weight_map":{"a":"../x"}})"); }},
      {"a missing file", ErrorCode::kNotFound, "part-2",
       [](const auto& folder) { std::filesystem::remove(folder + "/part-2.safetensors"); }},
      {"a tensor that is in another file", ErrorCode::kDataLoss, "'layer.0' is not in 'part-1.safetensors'",
       [](const auto& folder) {
         index(folder, R"({"weight_map":{"layer.0":"part-1.safetensors","layer.1":"part-0.safetensors"}})");
       }},
      {"a tensor in two files", ErrorCode::kDataLoss, "'layer.0' is in 'part-0.safetensors' and in 'part-1",
       [](const auto& folder) {
         std::filesystem::remove(folder + "/part-1.safetensors");
         std::filesystem::copy(folder + "/part-0.safetensors", folder + "/part-1.safetensors");
       }},
      {"a truncated file", ErrorCode::kDataLoss, "part-3",
       [](const auto& folder) { std::filesystem::resize_file(folder + "/part-3.safetensors", kShard / 2); }},
      {"a file of another format", ErrorCode::kUnimplemented, "part-1",
       [](const auto& folder) {
         testing::write_file(folder + "/part-1.safetensors", "GGUF\3" + std::string(99, '\0'));
       }},
      {"a folder in a file's place", ErrorCode::kInvalidArgument, "part-1",
       [](const auto& folder) {
         std::filesystem::remove(folder + "/part-1.safetensors");
         std::filesystem::create_directory(folder + "/part-1.safetensors");
       }},
  };
  return rows;
}

TEST_F(SetsTest, WhatIsNoWholeSetIsRefusedByNameAndLeavesNothing) {
  for (const BadSet& row : bad_sets()) {
    SCOPED_TRACE(row.name);
    for (int i = 0; i < 4; ++i) {
      std::filesystem::remove_all(at("llama/" + shard(i)));
      write_shard(i, 'a');
    }
    write_index("llama/model.safetensors.index.json", {0, 1, 2, 3});
    row.spoil(at("llama"));
    const auto refused = load(index());
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, row.code) << refused.error().message;
    EXPECT_NE(refused.error().message.find(row.says), std::string::npos) << refused.error().message;
    EXPECT_TRUE(list().models.empty());
    EXPECT_TRUE(facts_->ram.blocks.all().empty());
  }
}

// ---- files that are handed in

class HandedInTest : public SetsTest {
 protected:
  std::string offer(Session& session, const std::string& path) {
    return value(Sessions::offer(session, testing::open_source(path), clock_.now()));
  }
  wire::LoadModel request(Session& session, std::initializer_list<const char*> names) {
    wire::LoadModel request;
    request.path = index();
    for (const std::string name : names) request.files.push_back({offer(session, at("llama/" + name)), name});
    return request;
  }
};

constexpr const char* kIndex = "model.safetensors.index.json";

TEST_F(HandedInTest, TheBrokerTakesWhatTheIndexNamesAndClosesTheRest) {
  Session& session = this->session();
  testing::write_file(at("llama/vae.sft"), "anything");
  const auto reply = value(ask(rooms_->model_service, &ModelService::load, session,
                               request(session, {kIndex, "vae.sft", "part-3.safetensors", "part-2.safetensors",
                                                 "part-1.safetensors", "part-0.safetensors"})));
  EXPECT_EQ(reply.blocks.size(), 4U);
  EXPECT_TRUE(session.offers.empty());
}

TEST_F(HandedInTest, AFileThatNobodyHandedInIsNotOpenedByTheBroker) {
  Session& session = this->session();
  const auto refused =
      ask(rooms_->model_service, &ModelService::load, session, request(session, {kIndex, "part-0.safetensors"}));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kNotFound);
  EXPECT_NE(refused.error().message.find("part-1.safetensors"), std::string::npos) << refused.error().message;
}

TEST_F(HandedInTest, FilesBesideAFileThatIsNoIndexAreRefused) {
  Session& session = this->session();
  wire::LoadModel wrong = request(session, {"part-0.safetensors", "part-1.safetensors"});
  wrong.path = at("llama/part-0.safetensors");
  EXPECT_EQ(ask(rooms_->model_service, &ModelService::load, session, wrong).error().code, ErrorCode::kInvalidArgument);
  wire::LoadModel both = request(session, {kIndex});
  both.file = offer(session, index());
  EXPECT_EQ(ask(rooms_->model_service, &ModelService::load, session, both).error().code, ErrorCode::kInvalidArgument);
}

// ---- after a restart

class RestartTest : public SetsTest {
 protected:
  // What a broker finds that comes after this one, which was killed.
  struct Found {
    std::unique_ptr<Facts> facts;
    [[nodiscard]] std::vector<std::string> names() const {
      std::vector<std::string> names;
      for (const auto& [id, model] : facts->models.all())
        names.insert(names.end(), model.names.begin(), model.names.end());
      std::ranges::sort(names);
      return names;
    }
    [[nodiscard]] std::size_t spare() const {
      return static_cast<std::size_t>(
          std::ranges::count_if(facts->ram.blocks.all(), [](const auto& entry) { return entry.second.is_spare; }));
    }
  };
  Found restart(const StateRecords& records) {
    Found found;
    found.facts.reset(new Facts{.env = Environment(*os_, clock_, facts_->env.config),
                                .workers = Workers(facts_->workers.rights),
                                .ram = RamStore(*os_, std::move(facts_->ram.directory))});
    recovered_ = value(
        adopt_blocks({found.facts->env, found.facts->workers.rights, found.facts->ram, found.facts->models}, records));
    return found;
  }
  void remove_block(const std::string& block) { std::filesystem::remove(folder_ / block); }
  StateRecords written() {
    bool is_written = false;
    rooms_->keeper.when_written([&] { is_written = true; });
    turn_until([&] { return is_written; });
    return value(StateDb::open(folder_ / "state.db")).records;
  }

  Recovered recovered_;
};

TEST_F(RestartTest, AModelComesBackWithAndWithoutTheDatabase) {
  loaded(index(), "mine");
  const StateRecords records = written();
  const Found found = restart(records);
  EXPECT_EQ(found.names(), std::vector<std::string>{"mine"});
  EXPECT_EQ(found.facts->models.by_name("mine")->parts.size(), 4U);
  EXPECT_EQ(found.spare(), 0U);
}

TEST_F(RestartTest, WithoutTheDatabaseTheManifestsSayWhichBlocksAreOneModel) {
  loaded(at("llama/" + shard(0)), "alone");  // its manifest knows no set
  const auto set = loaded(index(), "mine");
  const Found found = restart({});
  EXPECT_EQ(found.names(), (std::vector<std::string>{"alone", "mine"}));
  ModelEntry* const model = found.facts->models.by_path(index());
  ASSERT_NE(model, nullptr);
  EXPECT_EQ(model->name(), "mine");
  EXPECT_EQ(model->parts.front()->id(), set.blocks.front().block);
}

TEST_F(RestartTest, BlocksOfAModelThatIsNotWholeHaveNoNameAndStay) {
  const auto set = loaded(index(), "mine");
  remove_block(set.blocks[2].block);
  const Found found = restart({});
  EXPECT_EQ(found.names(), std::vector<std::string>());
  EXPECT_EQ(found.spare(), 3U);
  EXPECT_TRUE(recovered_.superseded.empty());
}

TEST_F(RestartTest, TheNamesOfAModelThatIsNotWholeAreRemembered) {
  const auto set = loaded(index(), "mine");
  const StateRecords records = written();
  remove_block(set.blocks[2].block);
  const Found found = restart(records);
  EXPECT_EQ(found.names(), std::vector<std::string>());
  EXPECT_EQ(found.spare(), 3U);
  const RememberedNames::Model* const remembered = found.facts->models.remembered().find("mine");
  ASSERT_NE(remembered, nullptr);
  EXPECT_EQ(remembered->given.path, index());
}

TEST_F(RestartTest, OfTwoListsTheNewestCounts) {
  loaded(index(), "mine");
  wire::Attach attach;
  attach.model = "mine";
  value(ask(rooms_->leases, &LeaseService::attach, session(), attach));  // so that the old block stays
  write_shard(1, 'x');
  const auto after = loaded(index());
  // As if the broker had died before the old block was withdrawn.
  for (const auto& [id, block] : facts_->ram.blocks.all()) {
    if (block.draining()) std::filesystem::rename(block.block->path(), folder_ / id);
  }
  const Found found = restart({});
  EXPECT_EQ(found.names(), std::vector<std::string>{"mine"});
  EXPECT_EQ(found.facts->models.by_name("mine")->parts[1]->id(), after.blocks[1].block);
  EXPECT_EQ(found.spare(), 1U);
}

TEST_F(RestartTest, AModelThatWasUnloadedDoesNotComeBackBecauseAnotherHasItsBlocks) {
  const auto set = loaded(index(), "mine");
  for (int i = 0; i < 4; ++i) loaded(at("llama/" + shard(i)), "alone" + std::to_string(i));
  unload("mine");
  EXPECT_EQ(restart(written()).names(), (std::vector<std::string>{"alone0", "alone1", "alone2", "alone3"}));
}

}  // namespace
}  // namespace modelbroker
