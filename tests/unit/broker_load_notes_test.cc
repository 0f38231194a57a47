// What a broker notes of its running loads, and what the next one makes of it.
#include "broker/ram/load_notes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "tests/support/child.h"
#include "tests/support/faulty_os.h"
#include "tests/support/temp_directory.h"

namespace modelbroker {
namespace {

using testing::Child;
using testing::FaultyOs;
using ::testing::HasSubstr;
using testing::TempDirectory;

LoadNotes::Source source(const std::string& path = "/models/m.safetensors", std::uint64_t inode = 7) {
  return {{.device = 1, .inode = inode, .size = 1000, .mtime_ns = -5, .ctime_ns = 6}, path};
}

class LoadNotesTest : public ::testing::Test {
 protected:
  // A broker that is killed while these loads run.
  void die(const std::vector<LoadNotes::Source>& sources) {
    Child broker([&](const Child::Parent&) {
      LoadNotes notes(*os_, run_.path());
      if (!notes.open()) return 1;
      std::vector<LoadNotes::Note> running;
      for (const LoadNotes::Source& one : sources) running.push_back(notes.write(one));
      ::raise(SIGKILL);
      return 1;
    });
    ASSERT_EQ(broker.wait(), 128 + SIGKILL);
  }
  // A broker that lives.
  void live(const std::function<void(LoadNotes&)>& what) {
    LoadNotes notes(*os_, run_.path());
    ASSERT_TRUE(notes.open());
    what(notes);
  }
  bool refused(const LoadNotes::Source& one) {
    LoadNotes notes(*os_, run_.path());
    EXPECT_TRUE(notes.open());
    return !notes.check(one);
  }
  [[nodiscard]] std::set<std::string> files() const {
    std::set<std::string> found;
    if (!std::filesystem::exists(run_ / "loads")) return found;
    for (const auto& entry : std::filesystem::directory_iterator(run_ / "loads")) found.insert(entry.path().filename());
    return found;
  }

  TempDirectory run_;
  std::unique_ptr<Os> os_ = make_os({run_.path(), ""});
};

TEST_F(LoadNotesTest, OneDeathIsForgivenASecondInARowIsNot) {
  die({source()});
  EXPECT_FALSE(refused(source()));
  EXPECT_FALSE(refused(source()));  // a death without that load counts for nothing
  die({source()});
  live([](LoadNotes& notes) {
    const auto checked = notes.check(source());
    ASSERT_FALSE(checked);
    EXPECT_EQ(checked.error().code, ErrorCode::kFailedPrecondition);
    EXPECT_THAT(checked.error().message, HasSubstr("/models/m.safetensors"));
    EXPECT_THAT(checked.error().message, HasSubstr("load FILE --retry"));
    EXPECT_EQ(checked.error().details.at("deaths"), 2U);
    EXPECT_TRUE(notes.check(source("/models/other.safetensors", 8)));
  });
  EXPECT_TRUE(refused(source()));  // the next one knows it too
  EXPECT_EQ(files().size(), 1U);
}

TEST_F(LoadNotesTest, TheEndOfALoadClearsItHoweverOftenBrokersDied) {
  for (int deaths = 0; deaths < 3; ++deaths) die({source()});
  live([](LoadNotes& notes) { const auto note = notes.write(source()); });  // somebody asked for it all the same
  EXPECT_FALSE(refused(source()));
  EXPECT_TRUE(files().empty());
}

TEST_F(LoadNotesTest, WhatRanBesideTheDeadlyOneIsClearedByItsOwnEnd) {
  const auto other = source("/models/other.safetensors", 8);
  die({source(), other});
  live([&](LoadNotes& notes) { const auto note = notes.write(other); });
  die({source(), other});
  EXPECT_TRUE(refused(source()));
  EXPECT_FALSE(refused(other));
}

TEST_F(LoadNotesTest, APauseLeavesThingsAsTheyWere) {
  live([](LoadNotes& notes) { notes.write(source()).pause(); });
  EXPECT_TRUE(files().empty());
  die({source()});
  live([](LoadNotes& notes) { notes.write(source()).pause(); });
  die({source()});
  EXPECT_TRUE(refused(source()));
}

TEST_F(LoadNotesTest, TwoLoadsOfOneFileAreOneNote) {
  die({source()});
  live([](LoadNotes& notes) {
    std::optional<LoadNotes::Note> first(notes.write(source()));
    const auto second = notes.write(source());
    first.reset();
  });
  EXPECT_TRUE(files().empty());
  die({source(), source()});
  EXPECT_FALSE(refused(source()));
}

TEST_F(LoadNotesTest, ACleanStopStrikesOutAll) {
  die({source()});
  die({source()});
  live([this](LoadNotes& notes) {
    const auto note = notes.write(source("/models/other.safetensors", 8));
    EXPECT_EQ(files().size(), 2U);
    notes.strike_all();
    EXPECT_TRUE(files().empty());
  });
  EXPECT_FALSE(refused(source()));
}

struct Other {
  const char* what;
  LoadNotes::Source source;
  bool is_same;
};

TEST_F(LoadNotesTest, AFileIsTheSameByItsInodeOrByItsPath) {
  die({source()});
  die({source()});
  std::vector<Other> others{{"a link to it", source("/elsewhere/m.safetensors"), true},
                            {"a fresh inode number", source("/models/m.safetensors", 99), true},
                            {"another inode elsewhere", source("/elsewhere/m.safetensors", 99), false}};
  Other changed{"chmod", source(), true};
  changed.source.identity.ctime_ns = 77;
  others.push_back(changed);
  changed = {"another size", source(), false};
  changed.source.identity.size = 1001;
  others.push_back(changed);
  changed = {"another mtime", source(), false};
  changed.source.identity.mtime_ns = 8;
  others.push_back(changed);
  changed = {"a label is not a path", source("/models/m.safetensors", 99), false};
  changed.source.is_label = true;
  others.push_back(changed);
  for (const Other& other : others) EXPECT_EQ(refused(other.source), other.is_same) << other.what;
}

TEST_F(LoadNotesTest, AnotherFileAtThePathReplacesTheNote) {
  die({source()});
  die({source()});
  LoadNotes::Source other = source("/models/m.safetensors", 8);
  other.identity.mtime_ns = 9;
  die({other});
  EXPECT_FALSE(refused(source()));
  EXPECT_FALSE(refused(other));
  EXPECT_EQ(files().size(), 1U);
}

TEST_F(LoadNotesTest, StrangePathsAreNoted) {
  for (const std::string& path : {std::string("/"), "/" + std::string(4000, 'x'), std::string("/a\n\x01\xff/ü.b.c"),
                                  std::string("/models/a b'c\"d"), std::string("/models/..."), std::string("/-")}) {
    die({source(path)});
    die({source(path)});
    EXPECT_TRUE(refused(source(path))) << path;
    live([](LoadNotes& notes) { notes.strike_all(); });
    EXPECT_TRUE(files().empty()) << path;
  }
}

TEST_F(LoadNotesTest, WhatIsNotANoteIsRemovedAndTold) {
  std::filesystem::create_directory(run_ / "loads");
  const std::vector<std::string> strange{"x",
                                         "running",
                                         "died.",
                                         "running.0.1.2.3.4.5",
                                         "running.0.1.2.3.4.x.m",
                                         "running.-1.1.2.3.4.5.m",
                                         "died.0.1.2.3.4.5.\xff",
                                         "gone.0.1.2.3.4.5.m",
                                         "running.99999999999999999999999.1.2.3.4.5.m",
                                         "died.1000001.1.2.3.4.5.m",
                                         " died.1.1.2.3.4.5.m",
                                         "running.1 .1.2.3.4.5.m",
                                         "core"};
  for (const std::string& name : strange) std::ofstream(run_ / ("loads/" + name)) << "?";
  ASSERT_EQ(::mkfifo((run_ / "loads/fifo").c_str(), 0600), 0);
  std::filesystem::create_symlink("/etc/passwd", run_ / "loads/link");
  std::filesystem::create_directory(run_ / "loads/folder");
  ::testing::internal::CaptureStderr();
  live([](LoadNotes& notes) { EXPECT_TRUE(notes.check(source())); });
  const std::string log = ::testing::internal::GetCapturedStderr();
  EXPECT_THAT(log, HasSubstr("/loads/running.-1.1.2.3.4.5.m' is not a note of a load: removed"));
  EXPECT_THAT(log, HasSubstr("/loads/folder' cannot be removed"));
  EXPECT_EQ(files(), std::set<std::string>{"folder"});
  EXPECT_TRUE(std::filesystem::exists("/etc/passwd"));
}

TEST_F(LoadNotesTest, TheirNumberIsBounded) {
  std::filesystem::create_directory(run_ / "loads");
  for (int i = 0; i < 1200; ++i) {
    std::ofstream(run_ / ("loads/running.0.1." + std::to_string(i) + ".1000.4." + std::to_string(i) + ".m")).flush();
  }
  live([](LoadNotes&) {});
  EXPECT_EQ(files().size(), 1000U);
}

TEST_F(LoadNotesTest, TheSameFileNotedTwiceCountsOnceAsOftenAsItSays) {
  std::filesystem::create_directory(run_ / "loads");
  for (const char* const name : {"died.1.1.7.1000.-5.1.a", "running.0.1.7.1000.-5.2.b", "running.3.1.7.1000.-5.3.c"}) {
    std::ofstream(run_ / (std::string("loads/") + name)).flush();
  }
  live([](LoadNotes& notes) { EXPECT_EQ(notes.check(source()).error().details.at("deaths"), 4U); });
  EXPECT_EQ(files().size(), 1U);
}

TEST_F(LoadNotesTest, AFileInPlaceOfTheFolderIsTold) {
  std::ofstream(run_ / "loads") << "?";
  LoadNotes notes(*os_, run_.path());
  const auto opened = notes.open();
  ASSERT_FALSE(opened);
  EXPECT_THAT(opened.error().message, HasSubstr("/loads'"));
}

TEST_F(LoadNotesTest, ANoteThatCannotBeWrittenStopsNoLoad) {
  FaultyOs faulty(*os_);
  LoadNotes notes(faulty, run_.path());
  ASSERT_TRUE(notes.open());
  faulty.fail_at(1, ENOSPC, /*persistent=*/true);
  ::testing::internal::CaptureStderr();
  { const auto note = notes.write(source()); }
  { const auto note = notes.write(source()); }
  const std::string log = ::testing::internal::GetCapturedStderr();
  EXPECT_THAT(log, HasSubstr("No space left on device"));
  EXPECT_EQ(log.find("No space"), log.rfind("No space")) << "told once";
  EXPECT_TRUE(notes.check(source()));
  faulty.stop_failing();
  { const auto note = notes.write(source()); }
  EXPECT_TRUE(files().empty());
}

TEST_F(LoadNotesTest, AFolderThatSomebodyRemovedIsMadeAgain) {
  live([this](LoadNotes& notes) {
    { const auto note = notes.write(source()); }
    std::filesystem::remove_all(run_ / "loads");
    const auto note = notes.write(source());
    EXPECT_EQ(files().size(), 1U);
  });
}

}  // namespace
}  // namespace modelbroker
