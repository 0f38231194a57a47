// The table of settings: every row can be set, compared and copied; docs/operations.md shows it as it is; a
// configuration file that is wrong is refused with its line, its key and what is allowed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <set>
#include <sstream>

#include "broker/cli/configuration.h"
#include "broker/cli/settings.h"

namespace modelbroker::cli {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;
using namespace std::chrono_literals;

// A value that is not the default, for each kind.
std::string other_value(const Setting& setting) {
  using enum SettingKind;
  switch (setting.kind) {
    case kWord:
      return "somebody";
    case kInstance:
      return "other-1";
    case kFeatures:
      return "collapse,pidfd";
    case kPath:
      return "/other/folder";
    case kPaths:
      return "/other/folder";
    case kSwitch:
      return "yes";
    case kSize:
      return "3GiB";
    case kRate:
      return "7MiB";
    case kCount:
      return "5";
    case kTime:
      return "77s";
    case kKeep:
      return "10m";
    case kChoice:
      break;
  }
  // Of two or more words one is not the default.
  const std::string choices(setting.choices);
  const std::string first = choices.substr(0, choices.find('|'));
  return first == setting.fallback ? choices.substr(choices.rfind('|') + 1) : first;
}

TEST(Settings, EveryRowIsReachedByNamesOfItsOwn) {
  std::set<std::string> names, flags, variables;
  for (const Setting& setting : settings()) {
    EXPECT_TRUE(names.insert(setting.name()).second) << setting.name();
    EXPECT_TRUE(flags.insert(std::string(setting.flag)).second) << setting.flag;
    EXPECT_TRUE(variables.insert(setting.variable()).second) << setting.variable();
    EXPECT_EQ(find_setting(setting.section, setting.key), &setting);
  }
  EXPECT_EQ(find_setting("ram", "budget")->variable(), "MODELBROKER_RAM_BUDGET");
  EXPECT_EQ(find_setting("ram", "bugdet"), nullptr);
}

TEST(Settings, EveryRowSetsItsFieldAloneAndCanBeComparedAndCopied) {
  for (const Setting& setting : settings()) {
    Config changed;
    ASSERT_TRUE(set(changed, setting, {other_value(setting)})) << setting.name();
    Config copied;
    for (const Setting& each : settings()) {
      EXPECT_EQ(same(changed, Config(), each), &each != &setting) << setting.name() << " and " << each.name();
    }
    copy(changed, copied, setting);
    EXPECT_TRUE(same(changed, copied, setting)) << setting.name();
  }
}

TEST(Settings, TheDefaultsThatPeopleReadAreTheDefaultsThatHold) {
  for (const Setting& setting : settings()) {
    Config told;
    if (setting.fallback.find(' ') != std::string_view::npos || setting.fallback == "none") continue;  // a sentence
    ASSERT_TRUE(set(told, setting, {std::string(setting.fallback)})) << setting.name();
    EXPECT_TRUE(same(told, Config(), setting)) << setting.name();
  }
}

TEST(Settings, ValuesThatCannotBeAreRefusedWithWhatIsAllowed) {
  const std::map<std::string, std::vector<std::string>> wrong{
      {"server.instance", {"", "UPPER", "a/b", "../x", std::string(33, 'a')}},
      {"server.log_level", {"", "loud", "Info"}},
      {"server.disable_features", {"colapse", "all,nothing"}},
      {"ram.directory", {"", std::string("/a\0b", 4)}},
      {"ram.any_file_system", {"", "maybe", "2"}},
      {"ram.budget", {"", "x", "-1", "1XB", "1e400GiB", "9999999999TiB", "nan"}},
      {"ram.on_stop", {"", "later", "free|keep"}},
      {"ram.keep_alive", {"", "-2", "soon", "1e300", "inf"}},
      {"ram.load_threads", {"", "-1", "1.5", "1025", "9999999999"}},
      {"lease.grace", {"", "0", "-1", "1e9", "nan", "inf", "15 seconds", "25h", "0.0001"}},
      {"scrub.rate", {"", "-1", "fast", "1MiB/min"}},
  };
  for (const auto& [name, values] : wrong) {
    const Setting* const setting = find_setting(name.substr(0, name.find('.')), name.substr(name.find('.') + 1));
    ASSERT_NE(setting, nullptr) << name;
    for (const std::string& value : values) {
      Config config;
      const auto done = set(config, *setting, {value});
      ASSERT_FALSE(done) << name << " took '" << value << "'";
      EXPECT_EQ(done.error().code, ErrorCode::kInvalidArgument);
      EXPECT_THAT(done.error().message, HasSubstr(allowed(*setting)));
      EXPECT_TRUE(same(config, Config(), *setting)) << name << " was changed by '" << value << "'";
    }
  }
}

TEST(Settings, TimesAndRatesHaveUnits) {
  const auto time = [](const char* key, const char* text) {
    Config config;
    EXPECT_TRUE(set(config, *find_setting(key == std::string("keep_alive") ? "ram" : "lease", key), {text})) << text;
    return key == std::string("keep_alive") ? config.keep_alive : config.grace;
  };
  EXPECT_EQ(time("grace", "1500ms"), 1500ms);
  EXPECT_EQ(time("grace", "0.5"), 500ms);
  EXPECT_EQ(time("grace", "2m"), 2min);
  EXPECT_EQ(time("keep_alive", "2d"), 48h);
  EXPECT_EQ(time("keep_alive", "0"), 0s);
  EXPECT_LT(time("keep_alive", "-1"), 0s);
  EXPECT_LT(time("keep_alive", "forever"), 0s);
  Config config;
  ASSERT_TRUE(set(config, *find_setting("scrub", "rate"), {"8MiB/s"}));
  EXPECT_EQ(config.scrub_rate, 8ULL << 20);
}

// ---- the file

Error refused(const std::string& text) {
  Config config;
  const auto done = apply_file(config, text, "broker.toml");
  EXPECT_FALSE(done) << text;
  return done ? Error{} : done.error();
}

TEST(ConfigurationFile, SetsWhatItNamesAndNothingElse) {
  Config config;
  const auto done = apply_file(config,
                               "[server]\nrun_directory = '/run/x'\nlog_format = \"json\"\n"
                               "[ram]\nbudget = 1073741824\nkeep_alive = 300\non_stop = 'keep'\nhuge_pages = 'off'\n"
                               "any_file_system = true\n[lease]\ngrace = 0.25\nhung = '5s'\n"
                               "[models]\nfolders = ['/a', '/b:c']\n[scrub]\nrate = 0\n",
                               "broker.toml");
  ASSERT_TRUE(done) << done.error().message;
  EXPECT_EQ(config.run_directory, "/run/x");
  EXPECT_EQ(config.log_format, "json");
  EXPECT_EQ(config.ram_budget, 1ULL << 30);
  EXPECT_EQ(config.keep_alive, 5min);
  EXPECT_TRUE(config.keep_on_stop);
  EXPECT_FALSE(config.huge_pages);
  EXPECT_TRUE(config.any_file_system);
  EXPECT_EQ(config.grace, 250ms);
  EXPECT_EQ(config.hung, 5s);
  EXPECT_EQ(config.model_folders, (std::vector<std::string>{"/a", "/b:c"}));
  EXPECT_EQ(config.scrub_rate, 0U);
  EXPECT_EQ(config.instance, "default");
  EXPECT_TRUE(apply_file(config, "", "empty.toml"));
}

TEST(ConfigurationFile, WhatIsWrongIsNamedByFileLineAndKey) {
  const std::vector<std::tuple<const char*, const char*, const char*>> cases{
      {"[ram]\nbugdet = 1\n", "broker.toml:2: ", "unknown key 'bugdet': [ram] has any_file_system, budget, directory"},
      {"\n\n[rma]\n", "broker.toml:3: ", "unknown section [rma]: there are lease, models, ram"},
      {"budget = 1\n", "broker.toml:1: ", "unknown section [budget]"},
      {"ram = 1\n", "broker.toml:1: ", "ram: wrong type: [ram] is a section"},
      {"[[ram]]\nbudget = 1\n", "broker.toml:1: ", "ram: wrong type"},
      {"[ram]\non_stop = 'later'\n", "broker.toml:2: ", "ram.on_stop: 'later' is not allowed: free or keep"},
      {"[ram]\non_stop = true\n", "broker.toml:2: ", "ram.on_stop: wrong type: free or keep"},
      {"[ram]\n\nbudget = true\n", "broker.toml:3: ", "ram.budget: wrong type: bytes, or a number with KiB"},
      {"[ram]\nbudget = -5\n", "broker.toml:2: ", "ram.budget: '-5' is not allowed"},
      {"[ram]\nbudget = 1.5\n", "broker.toml:2: ", "ram.budget: wrong type"},
      {"[ram]\nload_threads = '4'\n", "broker.toml:2: ", "ram.load_threads: wrong type: a whole number"},
      {"[ram]\ndirectory = 'shm'\n", "broker.toml:2: ", "ram.directory: 'shm' is not allowed: in a file a path begins"},
      {"[models]\nfolders = '/a'\n", "broker.toml:2: ", "models.folders: wrong type: paths (in a file an array"},
      {"[models]\nfolders = ['/a', 1]\n", "broker.toml:2: ", "models.folders: wrong type"},
      {"[lease]\ngrace = inf\n", "broker.toml:2: ", "lease.grace: 'inf' is not allowed"},
      {"[lease]\ngrace = 2024-01-01\n", "broker.toml:2: ", "lease.grace: wrong type"},
      {"[ram]\nbudget = \n", "broker.toml:2: ", "not TOML: "},
      {"[ram]\nbudget = 1\nbudget = 2\n", "broker.toml:3: ", "not TOML: "},
      {"[server]\ninstance = \"a\\u001b[31m\"\n", "broker.toml:2: ", "server.instance: 'a\\x1b[31m' is not allowed"},
  };
  for (const auto& [text, begin, part] : cases) {
    const Error error = refused(text);
    EXPECT_EQ(error.code, ErrorCode::kInvalidArgument) << text;
    EXPECT_THAT(error.message, AllOf(StartsWith(begin), HasSubstr(part))) << text;
  }
}

TEST(ConfigurationFile, NoBytesBreakItsReader) {
  const std::string whole = "[ram]\nbudget = '1GiB'\n[models]\nfolders = ['/a', \"\\u00e9\"]\n[lease]\ngrace = 1.5e1\n";
  for (std::size_t size = 0; size < whole.size(); ++size) {
    Config config;
    (void)apply_file(config, whole.substr(0, size), "cut.toml");
    for (const char byte : {'\0', '\x1b', '\xff', '"', '[', '='}) {
      std::string changed = whole;
      changed[size] = byte;
      const auto done = apply_file(config, changed, "changed.toml");
      EXPECT_THAT(done ? "changed.toml:" : done.error().message, StartsWith("changed.toml:")) << size;
    }
  }
  refused(std::string(60000, '['));
  refused("[ram]\nbudget = " + std::string(60000, '['));
}

// ---- the document

std::string row(const Setting& setting) {
  const auto code = [](const std::string& text) { return "`" + text + "`"; };
  const bool word = setting.fallback.find(' ') == std::string_view::npos && setting.fallback != "none";
  const std::string fallback = word ? code(std::string(setting.fallback)) : std::string(setting.fallback);
  return "| " + code(setting.name()) + " | " + code("--" + std::string(setting.flag)) + " | " +
         code(setting.variable()) + " | " + fallback + " | " + (setting.live ? "yes" : "no") + " | " +
         std::string(setting.help) + " |";
}

TEST(Settings, TheTableInTheDocumentIsTheOneInTheCode) {
  std::ifstream file(MODELBROKER_OPERATIONS_DOCUMENT);
  ASSERT_TRUE(file);
  const std::string begin = "| key | flag | variable | default | SIGHUP | what |";
  std::string line;
  while (std::getline(file, line) && line != begin) {
  }
  ASSERT_EQ(line, begin) << "the table's heading is not in the document";
  std::getline(file, line);
  std::string written, wanted;
  while (std::getline(file, line) && line.starts_with('|')) written += line + "\n";
  for (const Setting& setting : settings()) wanted += row(setting) + "\n";
  EXPECT_EQ(written, wanted);
}

}  // namespace
}  // namespace modelbroker::cli
