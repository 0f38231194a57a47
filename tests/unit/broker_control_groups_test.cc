// Limits of control groups: version 1, version 2 and both at once, wherever they are mounted.
#include "broker/ram/control_groups.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/support/block_fixture.h"
#include "tests/support/temp_directory.h"

namespace modelbroker {
namespace {

namespace fs = std::filesystem;
using Files = std::map<std::string, std::string>;

constexpr auto* kUnlimited = "9223372036854771712\n";

class ControlGroupsTest : public ::testing::Test {
 protected:
  // The kernel's files: "proc/..." and "cgroup/...", with FOLDER in them for where that lies.
  void put(const Files& files) const {
    fs::remove_all(folder_ / "proc");
    fs::remove_all(folder_ / "cgroup");
    for (const auto& [name, text] : files) {
      fs::create_directories(fs::path(folder_ / name).parent_path());
      std::string whole = text;
      for (auto at = whole.find("FOLDER"); at != std::string::npos; at = whole.find("FOLDER")) {
        whole.replace(at, 6, folder_.path());
      }
      std::ofstream(folder_ / name) << whole;
    }
  }
  [[nodiscard]] KernelFolders folders() const { return {folder_ / "proc", folder_ / "cgroup"}; }
  [[nodiscard]] GroupMemory memory() const { return memory_left(*os_, control_groups(*os_, folders(), "memory")); }
  [[nodiscard]] unsigned cpus() const { return usable_cpus(*os_, folders()); }

  const std::unique_ptr<Os> os_ = make_plain_os();
  testing::TempDirectory folder_;
};

TEST_F(ControlGroupsTest, TheTightestMemoryLimitCountsInBothVersions) {
  struct Case {
    const char* what;
    Files files;
    std::optional<std::uint64_t> left;
    bool is_known;
  };
  const std::string group = "cgroup/memory/a/", top = "cgroup/memory/";
  const Files hybrid{{"proc/self/cgroup", "4:memory:/a/b\n1:cpu,cpuacct:/\n0::/x\n"},
                     {top + "memory.limit_in_bytes", kUnlimited},
                     {top + "memory.usage_in_bytes", "7000\n"},
                     {group + "memory.limit_in_bytes", "1000\n"},
                     {group + "memory.usage_in_bytes", "300\n"},
                     {group + "b/memory.limit_in_bytes", kUnlimited},
                     {group + "b/memory.usage_in_bytes", "100\n"}};
  const auto with = [](Files files, const Files& more) {
    for (const auto& [name, text] : more) files[name] = text;
    return files;
  };
  const std::vector<Case> cases{
      {"nothing can be read", {}, {}, false},
      {"in no group", {{"proc/self/cgroup", ""}}, {}, true},
      {"version 1: an ancestor's", hybrid, 700, true},
      {"version 1: its own", with(hybrid, {{group + "b/memory.limit_in_bytes", "500\n"}}), 400, true},
      {"version 1: page cache of the groups below is not gone",
       with(hybrid, {{group + "memory.stat",
                      "inactive_file 1\nactive_file 1\ntotal_inactive_file 20\ntotal_active_file 30\n"}}),
       750, true},
      {"version 1: already over it", with(hybrid, {{group + "memory.usage_in_bytes", "5000\n"}}), 0, true},
      {"version 1: no limit", with(hybrid, {{group + "memory.limit_in_bytes", kUnlimited}}), {}, true},
      {"version 1: the use cannot be read", with(hybrid, {{group + "memory.usage_in_bytes", ""}}), {}, false},
      {"version 1: not mounted", {{"proc/self/cgroup", "4:memory:/a\n"}}, {}, false},
      {"both at once: the tightest of all",
       with(hybrid, {{"cgroup/x/memory.max", "400\n"}, {"cgroup/x/memory.current", "50\n"}}), 350, true},
      {"version 2: switched on nowhere",
       {{"proc/self/cgroup", "0::/x\n"}, {"cgroup/cgroup.controllers", "cpu io\n"}},
       {},
       true},
      {"version 2: not mounted", {{"proc/self/cgroup", "0::/x\n"}}, {}, false},
      {"version 2: no limit", {{"proc/self/cgroup", "0::/x\n"}, {"cgroup/x/memory.max", "max\n"}}, {}, true},
      {"version 2: mounted elsewhere",
       {{"proc/self/cgroup", "0::/x\n"},
        {"proc/self/mountinfo", "41 31 0:38 / FOLDER/else\\040where rw - cgroup2 cgroup2 rw\n"},
        {"else where/x/memory.max", "100\n"},
        {"else where/x/memory.current", "1\n"}},
       99,
       true},
      {"a container's part of version 1, where its own path leads nowhere",
       {{"proc/self/cgroup", "4:memory:/docker/id/sub\n"},
        {"proc/self/mountinfo", "9 8 0:32 /docker/id FOLDER/cgroup/memory ro - cgroup cgroup rw,memory\n"},
        {top + "memory.limit_in_bytes", "1000\n"},
        {top + "memory.usage_in_bytes", "100\n"},
        {top + "sub/memory.limit_in_bytes", "500\n"},
        {top + "sub/memory.usage_in_bytes", "100\n"}},
       400,
       true},
      {"a group outside of the part that is mounted",
       {{"proc/self/cgroup", "4:memory:/../other\n"},
        {top + "memory.limit_in_bytes", "1000\n"},
        {top + "memory.usage_in_bytes", "100\n"}},
       900,
       true},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.what);
    put(c.files);
    EXPECT_EQ(memory().left, c.left);
    EXPECT_EQ(memory().is_known, c.is_known);
  }
}

TEST_F(ControlGroupsTest, AffinityAndQuotaBoundTheCpus) {
  struct Case {
    const char* what;
    Files files;
    unsigned cpus;
  };
  const Files eight{
      {"proc/self/status", "Name:\tx\nCpus_allowed:\tff\nCpus_allowed_list:\t0-5,8,10\nMems_allowed:\t1\n"},
      {"proc/self/cgroup", "2:cpu,cpuacct:/a\n0::/x/y\n"}};
  const auto with = [&](const Files& more) {
    Files files = eight;
    for (const auto& [name, text] : more) files[name] = text;
    return files;
  };
  const std::vector<Case> cases{
      {"affinity alone", eight, 8},
      {"version 2", with({{"cgroup/x/y/cpu.max", "150000 100000\n"}}), 2},
      {"version 2: an ancestor's",
       with({{"cgroup/x/y/cpu.max", "max 100000\n"}, {"cgroup/x/cpu.max", "20000 100000\n"}}), 1},
      {"version 2: more than there are", with({{"cgroup/x/cpu.max", "9900000 100000\n"}}), 8},
      {"version 1",
       with({{"cgroup/cpu/a/cpu.cfs_quota_us", "300000\n"}, {"cgroup/cpu/a/cpu.cfs_period_us", "100000\n"}}), 3},
      {"version 1: no quota",
       with({{"cgroup/cpu/a/cpu.cfs_quota_us", "-1\n"}, {"cgroup/cpu/a/cpu.cfs_period_us", "100000\n"}}), 8},
      {"version 1: a period of nothing",
       with({{"cgroup/cpu/a/cpu.cfs_quota_us", "1\n"}, {"cgroup/cpu/a/cpu.cfs_period_us", "0\n"}}), 8},
      {"one CPU", {{"proc/self/status", "Cpus_allowed_list:\t3\n"}}, 1},
      {"a list that is none", {{"proc/self/status", "Cpus_allowed_list:\tx\n"}}, 1},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.what);
    put(c.files);
    EXPECT_EQ(cpus(), c.cpus);
  }
  put({});
  EXPECT_GE(cpus(), 1U);
  EXPECT_GE(usable_cpus(*os_), 1U);
}

}  // namespace
}  // namespace modelbroker
