// Who may do what, and which files a broker opens for others.
#include "broker/workers/rights.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "broker/workers/source_access.h"
#include "tests/support/faulty_os.h"
#include "tests/support/temp_directory.h"
#include "tests/support/watchdog.h"

namespace modelbroker {
namespace {

constexpr uid_t kOwn = 1600, kAlice = 1500, kBob = 1501;
constexpr gid_t kGroup = 77;

TEST(RightsTest, OnlyItsUserRootAndMembersComeIn) {
  const Rights rights(kOwn, kGroup);
  EXPECT_TRUE(rights.enter({kOwn, 1, {}}));
  EXPECT_TRUE(rights.enter({0, 1, {}}));
  EXPECT_TRUE(rights.enter({kAlice, 1, {5, kGroup}}));
  EXPECT_FALSE(rights.enter({kAlice, 1, {5}}));
  const Rights alone(kOwn, std::nullopt);
  EXPECT_TRUE(alone.enter({kOwn, 1, {}}));
  EXPECT_TRUE(alone.enter({0, 1, {}}));
  EXPECT_FALSE(alone.enter({kAlice, 1, {kGroup}}));
}

TEST(RightsTest, APrivateModelIsItsUsersAndItsLoaders) {
  const Rights rights(kOwn, kGroup);
  const Rights::Owner hers{kOwn, kAlice, true};
  EXPECT_TRUE(rights.attach(kAlice, hers));
  EXPECT_TRUE(rights.attach(kOwn, hers));
  EXPECT_TRUE(rights.attach(0, hers));
  EXPECT_FALSE(rights.attach(kBob, hers));
  EXPECT_TRUE(rights.attach(kBob, {kBob, kAlice, true}));
  EXPECT_TRUE(rights.attach(kBob, {kOwn, kAlice, false}));
}

TEST(RightsTest, WhatSomebodyLoadedOthersDoNotManage) {
  const Rights rights(kOwn, kGroup);
  EXPECT_TRUE(rights.manage(kAlice, kAlice));
  EXPECT_TRUE(rights.manage(0, kAlice));
  EXPECT_FALSE(rights.manage(kBob, kAlice));
  EXPECT_FALSE(rights.manage(kBob, kOwn));
}

// ---- files

class SourceAccessTest : public ::testing::TestWithParam<const char*> {
 protected:
  SourceAccessTest() {
    for (const char* name : {"a", "b", "beside"}) std::filesystem::create_directory(folder_ / name);
    for (const char* name : {"a/x", "b/y", "beside/z"}) std::ofstream(folder_ / name) << name;
  }
  [[nodiscard]] std::string read(const std::string& path) {
    const auto file = open_in_folders(*os_, {folder_ / "a", folder_ / "b"}, path);
    if (!file) return "";
    std::string text(16, '\0');
    const auto got = os_->pread(file->get(), std::as_writable_bytes(std::span(text)), 0);
    text.resize(got.value_or(0));
    return text;
  }

  testing::Watchdog watchdog_;
  testing::TempDirectory folder_{"/tmp"};
  const std::unique_ptr<Os> os_ = make_os({"/dev/shm", GetParam()});
};

INSTANTIATE_TEST_SUITE_P(Ways, SourceAccessTest, ::testing::Values("", "openat2"),
                         [](const auto& way) { return std::string(way.param).empty() ? "AtOnce" : "NameByName"; });

TEST_P(SourceAccessTest, OpensWhatLiesInAFolderAndNothingBesideIt) {
  namespace fs = std::filesystem;
  fs::create_symlink("../b/y", folder_ / "a/sideways");
  fs::create_symlink(folder_ / "b", folder_ / "a/folder");
  fs::create_symlink("../beside/z", folder_ / "a/out");
  fs::create_symlink("loop", folder_ / "a/loop");
  EXPECT_EQ(read(folder_ / "a/x"), "a/x");
  EXPECT_EQ(read(folder_ / "a/../a/x"), "a/x");
  EXPECT_EQ(read(folder_ / "a/sideways"), "b/y");
  EXPECT_EQ(read(folder_ / "a/folder/y"), "b/y");
  for (const char* path : {"a/out", "a/loop", "a", "a/", "beside/z", "a/../beside/z", "a/x/x", "a/folder/../beside/z",
                           "a/none", "ab", ""}) {
    EXPECT_EQ(read(folder_ / path), "") << path;
  }
  EXPECT_EQ(read("a/x"), "");
}

TEST_P(SourceAccessTest, EveryFailingCallIsANoAndLeavesNothingOpen) {
  std::filesystem::create_symlink("../b/y", folder_ / "a/sideways");
  testing::FaultyOs faulty(*os_);
  const std::vector<std::string> folders{folder_ / "a", folder_ / "b"};
  const auto open_now = [] {
    const std::filesystem::directory_iterator all("/proc/self/fd");
    return std::distance(begin(all), end(all));
  };
  const auto before = open_now();
  for (std::uint64_t call = 1;; ++call) {
    faulty.fail_at(call, EIO);
    const auto file = open_in_folders(faulty, folders, folder_ / "a/sideways");
    EXPECT_EQ(open_now(), before + (file ? 1 : 0)) << call;
    if (faulty.failed_one()) continue;
    EXPECT_TRUE(file);
    break;
  }
}

TEST_P(SourceAccessTest, TheFoldersAboveCountAsWellAsTheFile) {
  ASSERT_EQ(::chmod(folder_.path().c_str(), 0755), 0);
  ASSERT_EQ(::chmod((folder_ / "a").c_str(), 0755), 0);
  const Fd file(::open((folder_ / "a/x").c_str(), O_RDONLY | O_CLOEXEC));
  const Peer peer{kAlice, 1, {kGroup}};
  const auto with_modes = [&](mode_t folder, mode_t mode) {
    EXPECT_EQ(::chmod((folder_ / "a").c_str(), folder), 0);
    EXPECT_EQ(::fchmod(file.get(), mode), 0);
    EXPECT_EQ(could_read(*os_, file.get(), peer), could_read(*os_, file.get(), kGroup));
    return could_read(*os_, file.get(), peer);
  };
  EXPECT_TRUE(with_modes(0755, 0644));
  EXPECT_TRUE(with_modes(0711, 0604));
  EXPECT_FALSE(with_modes(0755, 0640));
  EXPECT_FALSE(with_modes(0750, 0644));
  EXPECT_FALSE(with_modes(0754, 0644));
  EXPECT_TRUE(with_modes(0755, 0644));
  ASSERT_EQ(::unlink((folder_ / "a/x").c_str()), 0);
  EXPECT_FALSE(could_read(*os_, file.get(), peer));  // nobody could open it any more
}

}  // namespace
}  // namespace modelbroker
