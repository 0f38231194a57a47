// Settings: the one table of what a broker can be told. File, environment, flags, help and the table in
// docs/operations.md come from it: a new setting is one row (and its field in broker/base/config.h).
//
// Threads: any; the table is constant. Failure: invalid_argument that says what is allowed; the caller adds where.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "broker/base/config.h"
#include "shm/error.h"

namespace modelbroker::cli {

enum class SettingKind : std::uint8_t {
  kWord,      // text, checked by who uses it
  kInstance,  // a word that fits into file names
  kFeatures,  // names of kernel features
  kPath,      // made absolute
  kPaths,     // a list: an array in the file, with ':' between them elsewhere
  kChoice,    // one of `choices`
  kSwitch,    // yes or no; a flag without a value
  kSize,      // bytes: 48GiB
  kRate,      // bytes a second: 64MiB; 0: none
  kCount,     // a small whole number
  kTime,      // seconds, or with a unit: 500ms, 15s, 5m, 2h; more than nothing, at most a day
  kKeep,      // the same, 0 or any length; -1: for ever
};

struct Setting {
  using Member =
      std::variant<std::string Config::*, bool Config::*, unsigned Config::*, std::uint64_t Config::*,
                   std::optional<std::uint64_t> Config::*, Duration Config::*, std::vector<std::string> Config::*>;
  std::string_view section, key;  // [section] key = ...
  std::string_view flag;          // --flag
  SettingKind kind;
  Member member;
  std::string_view choices;   // "free|keep"; of a bool the second is true
  std::string_view fallback;  // what holds when nothing is said, for people
  bool live;                  // SIGHUP changes it; else it needs a restart
  std::string_view help;

  [[nodiscard]] std::string name() const { return std::string(section) + "." + std::string(key); }
  [[nodiscard]] std::string variable() const;  // MODELBROKER_RAM_BUDGET
};

[[nodiscard]] std::span<const Setting> settings() noexcept;
[[nodiscard]] const Setting* find_setting(std::string_view section, std::string_view key) noexcept;

// Sets the field from text: one value, but any number for kPaths.
[[nodiscard]] Result<void> set(Config& config, const Setting& setting, const std::vector<std::string>& values);
// What is allowed, in a few words: "free or keep".
[[nodiscard]] std::string allowed(const Setting& setting);

[[nodiscard]] bool same(const Config& one, const Config& other, const Setting& setting);
void copy(const Config& from, Config& to, const Setting& setting);

}  // namespace modelbroker::cli
