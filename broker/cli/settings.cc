#include "broker/cli/settings.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <sstream>

#include "broker/base/sizes.h"
#include "cpp_client/paths.h"
#include "shm/block_format.h"
#include "shm/os.h"
#include "shm/text.h"

namespace modelbroker::cli {
namespace {

using enum SettingKind;

// clang-format off
constexpr std::array<Setting, 19> kSettings{{
    {"server", "run_directory", "run-directory", kPath, &Config::run_directory, "",
     "/run/modelbroker for root, otherwise the user's own", false, "sockets, lock and state database"},
    {"server", "group", "group", kWord, &Config::group, "", "only this user and root", false,
     "group whose members may list, attach and load"},
    {"server", "instance", "instance", kInstance, &Config::instance, "", "default", false,
     "tells several brokers in one RAM directory apart"},
    {"server", "log_level", "log-level", kChoice, &Config::log_level, "debug|info|warning|error", "info", true,
     "how much to log"},
    {"server", "log_format", "log-format", kChoice, &Config::log_format, "text|json", "text", true,
     "log lines as text, or one JSON object per line"},
    {"server", "disable_features", "disable-features", kFeatures, &Config::disabled_features, "", "none", false,
     "kernel features not to use, e.g. collapse,write_lease (for tests)"},
    {"ram", "directory", "ram-directory", kPath, &Config::ram_directory, "", "/dev/shm", false,
     "where blocks live: a tmpfs"},
    {"ram", "any_file_system", "any-file-system", kSwitch, &Config::any_file_system, "", "no", false,
     "allow a RAM directory that is not on tmpfs"},
    {"ram", "budget", "ram-budget", kSize, &Config::ram_budget, "", "from what the machine has free", true,
     "upper limit for all blocks together, e.g. 48GiB"},
    {"ram", "reserve", "memory-reserve", kSize, &Config::memory_reserve, "", "512MiB", true,
     "memory that a load must leave free, on the machine and in the control group"},
    {"ram", "on_stop", "on-stop", kChoice, &Config::keep_on_stop, "free|keep", "free", true,
     "at a clean stop: free the memory, or keep it for the next broker"},
    {"ram", "keep_alive", "keep-alive", kKeep, &Config::keep_alive, "", "-1", true,
     "how long an unused model stays, e.g. 10m; -1: until its room is needed"},
    {"ram", "huge_pages", "huge-pages", kChoice, &Config::huge_pages, "off|auto", "auto", false,
     "auto: 2 MiB pages if the kernel has them; off: never"},
    {"ram", "load_threads", "load-threads", kCount, &Config::load_threads, "", "0", true,
     "threads that read one file; 0: one per usable core, more for a file that is not cached"},
    {"models", "folders", "model-folders", kPaths, &Config::model_folders, "", "none", true,
     "folders from which members of the group may load"},
    {"lease", "hung", "hung", kTime, &Config::hung, "", "15s", true,
     "silence after which a worker whose pid is not visible counts as gone"},
    {"lease", "grace", "grace", kTime, &Config::grace, "", "15s", true,
     "after a start: how long earlier workers have to re-register their leases"},
    {"scrub", "rate", "scrub-rate", kRate, &Config::scrub_rate, "", "64MiB", true,
     "how fast resident blocks are verified in the background, per second; 0: not at all"},
    {"scrub", "interval", "scrub-interval", kTime, &Config::scrub_interval, "", "24h", true,
     "how often each block is verified"},
}};
// clang-format on

std::string quoted(const std::string& value) { return "'" + printable(value, 64) + "'"; }

tl::unexpected<Error> refuse(const Setting& setting, const std::string& value) {
  return fail(ErrorCode::kInvalidArgument, quoted(value) + " is not allowed: " + allowed(setting));
}

std::vector<std::string> words(std::string_view text, char separator) {
  std::vector<std::string> list;
  std::istringstream rest{std::string(text)};
  for (std::string word; std::getline(rest, word, separator);) list.push_back(word);
  return list;
}

std::optional<bool> parse_switch(const std::string& value) {
  for (const char* const yes : {"true", "yes", "on", "1"}) {
    if (value == yes) return true;
  }
  for (const char* const no : {"false", "no", "off", "0"}) {
    if (value == no) return false;
  }
  return std::nullopt;
}

std::optional<Duration> parse_time(SettingKind kind, const std::string& value) {
  constexpr double kDay = 86400, kYears = 100 * 365 * kDay;
  if (kind == kKeep && (value == "-1" || value == "forever")) return Duration(-1);
  const auto seconds = parse_seconds(value);
  if (!seconds || *seconds < 0 || *seconds > (kind == kKeep ? kYears : kDay)) return std::nullopt;
  const auto time = std::chrono::duration_cast<Duration>(std::chrono::duration<double>(*seconds));
  return kind != kKeep && time < std::chrono::milliseconds(1) ? std::nullopt : std::optional(time);
}

// A feature that is misspelt would stay on, and nobody would notice.
Result<void> check_features(const Setting& setting, const std::string& list) {
  for (const std::string& word : words(list, ',')) {
    const bool known =
        word == "all" || std::ranges::any_of(kFeatureNames, [&](const auto& feature) { return feature.first == word; });
    if (!known) return fail(ErrorCode::kInvalidArgument, quoted(word) + " is none of " + allowed(setting));
  }
  return {};
}

Result<std::string> text_of(const Setting& setting, const std::string& value) {
  if (value.find('\0') != std::string::npos) return refuse(setting, value);
  if (setting.kind == kPath)
    return value.empty() ? Result<std::string>(refuse(setting, value)) : client::absolute_path(value);
  if (setting.kind == kInstance && !valid_instance(value)) return refuse(setting, value);
  if (setting.kind == kFeatures) MODELBROKER_TRY(check_features(setting, value));
  if (setting.kind == kChoice && std::ranges::count(words(setting.choices, '|'), value) == 0) {
    return refuse(setting, value);
  }
  return value;
}

Result<bool> bool_of(const Setting& setting, const std::string& value) {
  if (setting.kind == kSwitch) {
    const auto parsed = parse_switch(value);
    return parsed ? Result<bool>(*parsed) : refuse(setting, value);
  }
  MODELBROKER_TRY(text_of(setting, value));
  return value == words(setting.choices, '|').back();
}

Result<std::uint64_t> bytes_of(const Setting& setting, std::string value) {
  if (setting.kind == kRate && value.ends_with("/s")) value.resize(value.size() - 2);
  const auto size = parse_size(value);
  return size ? Result<std::uint64_t>(*size) : refuse(setting, value);
}

Result<unsigned> count_of(const Setting& setting, const std::string& value) {
  unsigned count = 0;
  const auto [rest, error] = std::from_chars(value.data(), value.data() + value.size(), count);
  if (error != std::errc() || rest != value.data() + value.size() || count > 1024) return refuse(setting, value);
  return count;
}

Result<std::vector<std::string>> paths_of(const Setting& setting, const std::vector<std::string>& values) {
  std::vector<std::string> paths;
  for (const std::string& value : values) {
    if (value.empty() || value.find('\0') != std::string::npos) return refuse(setting, value);
    paths.push_back(client::absolute_path(value));
  }
  return paths;
}

struct Assign {
  Config& config;
  const Setting& setting;
  const std::vector<std::string>& values;

  template <class T>
  Result<void> put(T Config::*member, Result<T> value) const {
    if (!value) return tl::unexpected(std::move(value).error());
    config.*member = std::move(*value);
    return {};
  }
  Result<void> operator()(std::string Config::*m) const { return put(m, text_of(setting, values.front())); }
  Result<void> operator()(bool Config::*m) const { return put(m, bool_of(setting, values.front())); }
  Result<void> operator()(unsigned Config::*m) const { return put(m, count_of(setting, values.front())); }
  Result<void> operator()(std::uint64_t Config::*m) const { return put(m, bytes_of(setting, values.front())); }
  Result<void> operator()(std::optional<std::uint64_t> Config::*m) const {
    MODELBROKER_ASSIGN(config.*m, bytes_of(setting, values.front()));
    return {};
  }
  Result<void> operator()(Duration Config::*m) const {
    const auto time = parse_time(setting.kind, values.front());
    return put(m, time ? Result<Duration>(*time) : refuse(setting, values.front()));
  }
  Result<void> operator()(std::vector<std::string> Config::*m) const { return put(m, paths_of(setting, values)); }
};

}  // namespace

std::string Setting::variable() const {
  std::string text = "MODELBROKER_" + std::string(flag);
  std::ranges::transform(text, text.begin(), [](char c) {
    if (c == '-') return '_';
    return c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c;
  });
  return text;
}

std::span<const Setting> settings() noexcept { return kSettings; }

const Setting* find_setting(std::string_view section, std::string_view key) noexcept {
  const auto* const found =
      std::ranges::find_if(kSettings, [&](const Setting& s) { return s.section == section && s.key == key; });
  return found == kSettings.end() ? nullptr : found;
}

Result<void> set(Config& config, const Setting& setting, const std::vector<std::string>& values) {
  if (setting.kind != kPaths && values.size() != 1) {
    return fail(ErrorCode::kInvalidArgument, "exactly one value is needed: " + allowed(setting));
  }
  return std::visit(Assign{config, setting, values}, setting.member);
}

std::string allowed(const Setting& setting) {
  switch (setting.kind) {
    case kWord:
      return "a text";
    case kInstance:
      return "1 to 32 characters of a-z, 0-9 and '-'";
    case kPath:
      return "a path";
    case kPaths:
      return "paths (in a file an array of them, elsewhere with ':' between them)";
    case kSwitch:
      return "true or false";
    case kSize:
      return "bytes, or a number with KiB MiB GiB TiB (binary) or KB MB GB TB (decimal)";
    case kRate:
      return "bytes a second, such as 64MiB, or 0 for none";
    case kCount:
      return "a whole number from 0 to 1024";
    case kTime:
      return "seconds, or a number with ms, s, m or h, up to a day and not 0";
    case kKeep:
      return "seconds, or a number with ms, s, m, h or d; 0; or -1 for ever";
    case kFeatures: {
      std::string names = "all";
      for (const auto& [name, member] : kFeatureNames) names.append(", ").append(name);
      return names;
    }
    case kChoice:
      break;
  }
  const std::vector<std::string> list = words(setting.choices, '|');
  std::string text;
  for (std::size_t i = 0; i < list.size(); ++i) {
    text += (i == 0 ? "" : i + 1 < list.size() ? ", " : " or ") + list[i];
  }
  return text;
}

bool same(const Config& one, const Config& other, const Setting& setting) {
  return std::visit([&](auto member) { return one.*member == other.*member; }, setting.member);
}

void copy(const Config& from, Config& to, const Setting& setting) {
  std::visit([&](auto member) { to.*member = from.*member; }, setting.member);
}

}  // namespace modelbroker::cli
