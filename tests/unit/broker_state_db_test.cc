// Names and pins over a broker's death: real files, killed writers, damage, and other versions.
#include "broker/models/state_db.h"

#include <SQLiteCpp/SQLiteCpp.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <tuple>

#include "tests/support/child.h"
#include "tests/support/temp_directory.h"
#include "tests/support/watchdog.h"

namespace modelbroker {

// For comparisons in this file.
inline bool operator==(const GivenName& a, const GivenName& b) {
  return std::tie(a.loader, a.path, a.is_label) == std::tie(b.loader, b.path, b.is_label);
}
inline bool operator==(const RememberedNames::Named& a, const RememberedNames::Named& b) {
  const auto tie = [](const RememberedNames::Named& n) {
    return std::tie(n.name, n.position, n.model.given, n.model.type, n.model.keep_alive, n.model.pinned,
                    n.model.source);
  };
  return tie(a) == tie(b);
}
inline bool operator==(const BlockRecord& a, const BlockRecord& b) {
  const auto tie = [](const BlockRecord& r) {
    return std::tie(r.block, r.damaged, r.ctime_ns, r.loader, r.source_uid);
  };
  return tie(a) == tie(b);
}
inline bool operator==(const ModelRecord& a, const ModelRecord& b) {
  const auto tie = [](const ModelRecord& r) {
    return std::tie(r.id, r.blocks, r.names, r.given, r.type, r.path, r.pinned, r.keep_alive_ns);
  };
  return tie(a) == tie(b);
}

namespace {

namespace fs = std::filesystem;
using Records = std::vector<ModelRecord>;
using Evicted = std::vector<RememberedNames::Named>;

BlockRecord block_record(const std::string& block) {
  return {block, block.size() > 1, 1'700'000'000'123'456'789, 1500, 4'000'000'000};
}

// Of a model that has one block, of the same id.
ModelRecord record(const std::string& id, const std::vector<std::string>& names, bool pinned = false) {
  ModelRecord made{.id = id, .blocks = {id}, .names = names, .type = "unet", .path = "/models/" + id, .pinned = pinned};
  for (const std::string& name : names) {
    const auto size = static_cast<std::uint32_t>(name.size());
    made.given.push_back({1600 + size, "/links/" + name, size % 2 == 0});
  }
  return made;
}

// Models with their blocks, and those that end with theirs.
StateRecords changes_of(const Records& models, const std::vector<std::string>& ended,
                        const RememberedNames::Changes& names) {
  StateRecords changes{.models = models, .remembered = names.remembered, .forgotten_names = names.forgotten};
  for (const ModelRecord& model : models) {
    for (const std::string& block : model.blocks) changes.blocks.push_back(block_record(block));
  }
  changes.ended_models = changes.gone_blocks = ended;
  return changes;
}
Result<void> apply(StateDb& db, const Records& models, const std::vector<std::string>& ended,
                   const RememberedNames::Changes& names = {}) {
  return db.apply(changes_of(models, ended, names));
}
Result<void> replace(StateDb& db, const Records& models, const Evicted& remembered = {}) {
  return db.replace(changes_of(models, {}, {.remembered = remembered, .forgotten = {}}));
}

RememberedNames::Model evicted_model(const std::string& path, std::optional<FileIdentity> source = {}) {
  return {{4'000'000'000, path, path == "/a"}, "unet", Duration(77), source.has_value(), source};
}

class StateDbTest : public ::testing::Test {
 protected:
  [[nodiscard]] StateDb::Opened open() const {
    auto opened = StateDb::open(path_);
    EXPECT_TRUE(opened) << opened.error().message;
    return opened ? std::move(*opened) : StateDb::Opened{};
  }
  // What another broker would find; the file must be sound.
  [[nodiscard]] Records records() const {
    StateDb::Opened opened = open();
    EXPECT_EQ(opened.warning, "");
    return std::move(opened.records.models);
  }
  [[nodiscard]] Evicted evicted() const { return open().records.remembered; }
  void expect_moved_aside_and_usable(const std::string& aside, const std::string& word) const {
    StateDb::Opened opened = open();
    EXPECT_NE(opened.warning.find("'" + path_ + "'"), std::string::npos) << opened.warning;
    EXPECT_NE(opened.warning.find("'" + aside + "'"), std::string::npos) << opened.warning;
    EXPECT_NE(opened.warning.find(word), std::string::npos) << opened.warning;
    EXPECT_TRUE(opened.records.models.empty() && opened.records.blocks.empty());
    EXPECT_TRUE(fs::exists(aside));
    ASSERT_TRUE(apply(*opened.db, {record("new", {"n"})}, {}));
    opened.db.reset();
    EXPECT_EQ(records(), Records{record("new", {"n"})});
  }
  static std::string contents(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  static void put(const std::string& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
  }

  testing::Watchdog watchdog_;
  testing::TempDirectory folder_;
  const std::string path_ = folder_ / "state.db";
};

// ---- ordinary life

TEST_F(StateDbTest, ANewFileIsEmpty) {
  EXPECT_EQ(records(), Records{});
  EXPECT_EQ(records(), Records{});
  EXPECT_FALSE(fs::exists(path_ + ".damaged"));
}

TEST_F(StateDbTest, WhatIsAppliedIsThereWhenItIsOpenedAgain) {
  Records all{record("a", {"one", "eins", "un"}, true), record("b", {}),
              record("c", {"gr\xc3\xbc\xc3\x9f"
                           "e; DROP TABLE names"})};
  all[1].blocks = {"z", "a", "y"};  // in their own order; one is another model's too
  all[2].keep_alive_ns = 12;
  ASSERT_TRUE(apply(*open().db, all, {}));
  EXPECT_EQ(records(), all);  // in the order of their ids, names in theirs
  EXPECT_EQ(open().records.blocks,
            (std::vector{block_record("a"), block_record("c"), block_record("y"), block_record("z")}));
}

TEST_F(StateDbTest, AModelIsReplacedErasedAndLeftAlone) {
  StateDb::Opened opened = open();
  ASSERT_TRUE(apply(*opened.db, {record("a", {"one", "eins"}), record("b", {"two"}), record("c", {"three"})}, {}));
  ASSERT_TRUE(apply(*opened.db, {record("a", {"eins", "neu"}, true)}, {"b", "never"}));
  EXPECT_EQ(records(), (Records{record("a", {"eins", "neu"}, true), record("c", {"three"})}));
  ASSERT_TRUE(apply(*opened.db, {}, {}));
  ASSERT_TRUE(apply(*opened.db, {}, {"a", "c"}));
  EXPECT_EQ(records(), Records{});
}

TEST_F(StateDbTest, ANameMovesToTheModelThatHasItNow) {
  StateDb::Opened opened = open();
  ASSERT_TRUE(apply(*opened.db, {record("old", {"one", "two"})}, {}));
  ASSERT_TRUE(apply(*opened.db, {record("new", {"one"})}, {}));
  EXPECT_EQ(records(), (Records{record("new", {"one"}), record("old", {"two"})}));
  // In one step, whichever is written first.
  ASSERT_TRUE(apply(*opened.db, {record("old", {}), record("new", {"one", "two"})}, {}));
  EXPECT_EQ(records(), (Records{record("new", {"one", "two"}), record("old", {})}));
  ASSERT_TRUE(apply(*opened.db, {record("newer", {"one", "two"}), record("new", {})}, {"old"}));
  EXPECT_EQ(records(), (Records{record("new", {}), record("newer", {"one", "two"})}));
}

TEST_F(StateDbTest, AModelThatIsErasedAndWrittenInOneStepStays) {
  ASSERT_TRUE(apply(*open().db, {record("a", {"one"})}, {"a"}));
  EXPECT_EQ(records(), Records{record("a", {"one"})});
}

TEST_F(StateDbTest, RememberedNamesAreKeptInTheirOrderAndWithAllThatIsKnown) {
  constexpr std::uint64_t kHuge = ~std::uint64_t{0};
  RememberedNames names;
  names.remember("z", evicted_model("/z"));
  names.remember("a", evicted_model("/a", FileIdentity{kHuge, kHuge - 1, 3, -4, 5}));
  names.remember("m", evicted_model("/m"));
  const Evicted all = names.all();
  ASSERT_EQ(all.size(), 3U);
  ASSERT_TRUE(apply(*open().db, {}, {}, names.take_changes()));
  EXPECT_EQ(evicted(), all);

  // Only what has changed since, with a block in one step.
  names.forget("z");
  names.forget("nobody's");
  names.remember("a", evicted_model("/elsewhere"));
  const RememberedNames::Changes changes = names.take_changes();
  EXPECT_EQ(changes.forgotten, std::vector<std::string>{"z"});
  ASSERT_EQ(changes.remembered.size(), 1U);
  ASSERT_TRUE(apply(*open().db, {record("b", {"z"})}, {}, changes));
  EXPECT_EQ(evicted(), names.all());
  EXPECT_EQ(evicted().back().name, "a");  // evicted anew
  EXPECT_EQ(records(), Records{record("b", {"z"})});

  RememberedNames restored;
  for (RememberedNames::Named& named : evicted()) restored.restore(std::move(named));
  EXPECT_EQ(restored.all(), names.all());
  EXPECT_TRUE(restored.take_changes().remembered.empty());
  restored.remember("last", evicted_model("/last"));
  EXPECT_EQ(restored.all().back().name, "last");

  ASSERT_TRUE(replace(*open().db, {}, restored.all()));
  EXPECT_EQ(evicted(), restored.all());
  ASSERT_TRUE(replace(*open().db, {}));
  EXPECT_EQ(evicted(), Evicted{});
}

TEST_F(StateDbTest, TheOldestRememberedNamesAreForgottenThereToo) {
  StateDb::Opened opened = open();
  RememberedNames names;
  for (std::size_t i = 0; i < RememberedNames::kMost; ++i) names.remember(std::to_string(i), evicted_model("/m"));
  ASSERT_TRUE(apply(*opened.db, {}, {}, names.take_changes()));
  names.remember("one more", evicted_model("/m"));
  ASSERT_TRUE(apply(*opened.db, {}, {}, names.take_changes()));
  const Evicted left = evicted();
  ASSERT_EQ(left.size(), RememberedNames::kMost);
  EXPECT_EQ(left.front().name, "1");
  EXPECT_EQ(left.back().name, "one more");
}

// ---- death

TEST_F(StateDbTest, AKilledBrokerLosesNothingThatWasApplied) {
  testing::Child child([&](const testing::Child::Parent& parent) {
    auto opened = StateDb::open(path_);
    for (int i = 0; opened && i < 50; ++i) {
      if (!apply(*opened->db, {record("b" + std::to_string(i), {std::to_string(i)})}, {})) return 1;
    }
    parent.say("applied");
    parent.wait();
    return 0;
  });
  ASSERT_EQ(child.hear(), "applied");
  child.kill();
  EXPECT_EQ(records().size(), 50U);
}

TEST_F(StateDbTest, ABrokerThatIsKilledWhileItWritesLeavesWholeTransactions) {
  for (int round = 0; round < 10; ++round) {
    testing::Child child([&](const testing::Child::Parent& parent) {
      auto opened = StateDb::open(path_);
      if (!opened) return 1;
      parent.say("open");
      // Two models and their names belong together.
      for (int i = 0;; ++i) {
        const std::string number = std::to_string(i);
        if (!apply(*opened->db, {record("x", {"n" + number}), record("y", {"m" + number})}, {})) return 1;
      }
    });
    ASSERT_EQ(child.hear(), "open");
    while (!fs::exists(path_ + "-wal") || fs::file_size(path_ + "-wal") == 0) {
    }
    child.kill();
    const Records left = records();
    if (left.empty()) continue;
    ASSERT_EQ(left.size(), 2U);
    EXPECT_EQ(left[0].names.at(0).substr(1), left[1].names.at(0).substr(1));
  }
}

// ---- damage

TEST_F(StateDbTest, WhatIsNoDatabaseIsMovedAside) {
  put(path_, std::string(10'000, 'x'));
  expect_moved_aside_and_usable(path_ + ".damaged", "not a database");
  EXPECT_EQ(contents(path_ + ".damaged"), std::string(10'000, 'x'));
  put(path_, "again");  // an older one in its place is no hindrance
  fs::remove(path_ + "-wal");
  fs::remove(path_ + "-shm");
  expect_moved_aside_and_usable(path_ + ".damaged", ".damaged");
  EXPECT_EQ(contents(path_ + ".damaged"), "again");
}

TEST_F(StateDbTest, AnEmptyFileIsANewOne) {
  put(path_, "");
  EXPECT_EQ(records(), Records{});
}

TEST_F(StateDbTest, DamageAnywhereNeverStopsTheBroker) {
  {
    StateDb::Opened opened = open();
    Records many;
    for (int i = 0; i < 100; ++i) many.push_back(record("block" + std::to_string(i), {"name" + std::to_string(i)}));
    ASSERT_TRUE(apply(*opened.db, many, {}));
  }
  const std::string sound = contents(path_);
  ASSERT_GE(sound.size(), 3U * 4096);
  const auto try_it = [&](const std::string& bytes, std::size_t at) {
    for (const auto& entry : fs::directory_iterator(folder_.path())) fs::remove(entry.path());
    put(path_, bytes);
    StateDb::Opened opened = open();
    ASSERT_TRUE(opened.db) << at;
    // What was found may be less; writing works, or says so.
    const auto applied = apply(*opened.db, {record("new", {"n"})}, {"block3"});
    if (!applied) {
      EXPECT_NE(applied.error().message.find(path_), std::string::npos) << at;
    }
  };
  for (std::size_t at = 0; at < sound.size(); at += at < 200 ? 7 : 301) {
    std::string bytes = sound;
    bytes[at] = static_cast<char>(bytes[at] ^ 0x55);
    try_it(bytes, at);
  }
  for (std::size_t size = 1; size < sound.size(); size += 1000) try_it(sound.substr(0, size), size);
}

TEST_F(StateDbTest, ADatabaseOfAnotherVersionIsSetAside) {
  for (const int version : {99, 5, 5, -1}) {  // also in the place of an older one
    const std::string aside = path_ + ".version-" + std::to_string(version);
    ASSERT_TRUE(replace(*open().db, {record("old", {"o"})}));
    SQLite::Database(path_, SQLite::OPEN_READWRITE).exec("PRAGMA user_version=" + std::to_string(version));
    put(aside + "-wal", "of the older one");
    expect_moved_aside_and_usable(aside, "is of version " + std::to_string(version));
    SQLite::Database kept(aside);
    EXPECT_EQ(kept.execAndGet("PRAGMA user_version").getInt(), version);
    EXPECT_EQ(kept.execAndGet("SELECT model FROM names WHERE name = 'o'").getString(), "old");
  }
  EXPECT_FALSE(fs::exists(path_ + ".damaged"));
}

TEST_F(StateDbTest, ADatabaseOfAnotherVersionThatCannotBeSetAsideIsRefused) {
  (void)open();
  SQLite::Database(path_, SQLite::OPEN_READWRITE).exec("PRAGMA user_version=99");
  fs::create_directories(path_ + ".version-99/in-the-way");
  const auto opened = StateDb::open(path_);
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().code, ErrorCode::kFailedPrecondition);
  EXPECT_NE(opened.error().message.find(path_ + ".version-99"), std::string::npos) << opened.error().message;
  EXPECT_EQ(SQLite::Database(path_).execAndGet("PRAGMA user_version").getInt(), 99);
}

TEST_F(StateDbTest, SomebodyElsesTablesAreMovedAside) {
  SQLite::Database(path_, SQLite::OPEN_READWRITE | SQLite::OPEN_CREATE).exec("CREATE TABLE blocks(other TEXT)");
  expect_moved_aside_and_usable(path_ + ".damaged", "no such column");
}

TEST_F(StateDbTest, WhatCannotBeOpenedIsNamedWithTheRemedy) {
  std::filesystem::create_directories(folder_ / "a-folder/state.db");
  for (const std::string path : {"absent/state.db", "a-folder/state.db"}) {
    const auto opened = StateDb::open(folder_ / path);
    ASSERT_FALSE(opened);
    EXPECT_EQ(opened.error().code, ErrorCode::kFailedPrecondition);
    EXPECT_NE(opened.error().message.find(path), std::string::npos) << opened.error().message;
    EXPECT_NE(opened.error().message.find("--run-directory"), std::string::npos) << opened.error().message;
  }
}

TEST_F(StateDbTest, AWriteThatFailsChangesNothing) {
  StateDb::Opened opened = open();
  const Records before{record("a", {"one"}), record("b", {"two"})};
  ASSERT_TRUE(apply(*opened.db, before, {}));
  ::signal(SIGXFSZ, SIG_IGN);
  rlimit limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &limit), 0);
  const rlimit tight{100'000, limit.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &tight), 0);
  const auto failed = apply(*opened.db, {record("c", {std::string(1'000'000, 'x')})}, {"a"});
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  ASSERT_FALSE(failed);
  EXPECT_NE(failed.error().message.find(path_), std::string::npos) << failed.error().message;
  EXPECT_EQ(records(), before);
  ASSERT_TRUE(apply(*opened.db, {record("c", {"three"})}, {"a"}));
  EXPECT_EQ(records(), (Records{record("b", {"two"}), record("c", {"three"})}));
}

}  // namespace
}  // namespace modelbroker
