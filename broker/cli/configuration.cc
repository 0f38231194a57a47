#include "broker/cli/configuration.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <toml++/toml.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <set>
#include <sstream>

#include "cpp_client/paths.h"
#include "shm/os.h"
#include "shm/text.h"
#include "wire/endpoint.h"
#include "wire/frame.h"

namespace modelbroker::cli {
namespace {

constexpr std::size_t kMostText = 64 << 10;
constexpr std::string_view kPrefix = "MODELBROKER_";

std::string environment(const std::string& name) {
  const char* const value = std::getenv(name.c_str());
  return value == nullptr ? "" : value;
}

Error at(const std::string& where, Error error) {
  error.message = where + ": " + error.message;
  return error;
}

// No fifo hangs it, and what is no small text is refused.
Result<std::string> read_file(const std::string& path) {
  const std::string what = "reading the configuration '" + path + "'";
  const std::unique_ptr<Os> os = make_plain_os();
  const auto file = os->open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC, 0);
  if (!file) return fail_errno(file.error().number, what);
  const auto found = os->fstat(file->get());
  if (!found) return fail_errno(found.error().number, what);
  if (!S_ISREG(found->st_mode)) return fail(ErrorCode::kInvalidArgument, what + ": it is not a regular file");
  std::string text(kMostText, '\0');
  std::size_t size = 0;
  while (size < text.size()) {
    const auto got = os->pread(file->get(), std::as_writable_bytes(std::span(text).subspan(size)), size);
    if (!got) return fail_errno(got.error().number, what);
    if (*got == 0) break;
    size += *got;
  }
  if (size == text.size()) return fail(ErrorCode::kInvalidArgument, what + ": it is longer than 64 KiB");
  text.resize(size);
  return text;
}

std::vector<std::string> split_paths(const std::string& text) {
  std::vector<std::string> list;
  std::istringstream rest(text);
  for (std::string word; std::getline(rest, word, ':');) list.push_back(word);
  return list;
}

// From a flag or a variable.
Result<void> set_text(Config& config, const Setting& setting, const std::string& text) {
  return set(config, setting, setting.kind == SettingKind::kPaths ? split_paths(text) : std::vector{text});
}

// ---- the file

std::string number_text(double value) {
  std::ostringstream text;
  text.imbue(std::locale::classic());
  text.precision(15);
  text << value;
  return text.str();
}

// A value as text, if its type fits the setting.
std::optional<std::string> text_of(SettingKind kind, const toml::node& node) {
  using enum SettingKind;
  const bool number = kind == kSize || kind == kRate || kind == kCount || kind == kTime || kind == kKeep;
  const bool fraction = kind == kTime || kind == kKeep;
  if (kind == kSwitch) {
    const auto value = node.value_exact<bool>();
    return value ? std::optional<std::string>(*value ? "true" : "false") : std::nullopt;
  }
  if (const auto value = node.value_exact<std::int64_t>(); value && number) return std::to_string(*value);
  if (const auto value = node.value_exact<double>(); value && fraction) return number_text(*value);
  if (auto value = node.value_exact<std::string>(); value && kind != kCount) return value;
  return std::nullopt;
}

Result<std::vector<std::string>> values_of(const Setting& setting, const toml::node& node) {
  std::vector<std::string> values;
  const bool list = setting.kind == SettingKind::kPaths;
  if (list != node.is_array()) return fail(ErrorCode::kInvalidArgument, "wrong type: " + allowed(setting));
  const auto take = [&](const toml::node& element) {
    const auto text = text_of(setting.kind, element);
    if (text) values.push_back(*text);
    return text.has_value();
  };
  const bool all = list ? std::ranges::all_of(*node.as_array(), take) : take(node);
  if (!all) return fail(ErrorCode::kInvalidArgument, "wrong type: " + allowed(setting));
  const bool paths = list || setting.kind == SettingKind::kPath;
  for (const std::string& value : values) {
    // Relative to what? A broker that is told to read again may stand elsewhere by then.
    if (paths && !value.starts_with('/')) {
      return fail(ErrorCode::kInvalidArgument,
                  "'" + printable(value, 64) + "' is not allowed: in a file a path begins with '/'");
    }
  }
  return values;
}

std::string listed(const std::set<std::string_view>& names) {
  std::string text;
  for (const std::string_view name : names) text.append(text.empty() ? "" : ", ").append(name);
  return text;
}

std::string known_sections() {
  std::set<std::string_view> names;
  for (const Setting& setting : settings()) names.insert(setting.section);
  return listed(names);
}

std::string known_keys(std::string_view section) {
  std::set<std::string_view> names;
  for (const Setting& setting : settings()) {
    if (setting.section == section) names.insert(setting.key);
  }
  return listed(names);
}

class FileReader {
 public:
  FileReader(Config& config, const std::string& path) : config_(config), path_(path) {}

  [[nodiscard]] Result<void> root(const toml::table& table) const {
    for (const auto& [name, node] : table) {
      const std::string section(name.str());
      if (known_keys(section).empty()) {
        return wrong(name.source(), "unknown section [" + printable(section, 64) + "]: there are " + known_sections());
      }
      const toml::table* const inner = node.as_table();
      if (inner == nullptr) {
        std::string what = section;
        what.append(": wrong type: [").append(section).append("] is a section of ").append(known_keys(section));
        return wrong(node.source(), what);
      }
      MODELBROKER_TRY(read_section(section, *inner));
    }
    return {};
  }

 private:
  [[nodiscard]] Result<void> read_section(const std::string& section, const toml::table& table) const {
    for (const auto& [key, node] : table) {
      const Setting* const setting = find_setting(section, key.str());
      if (setting == nullptr) {
        return wrong(key.source(),
                     "unknown key '" + printable(key.str(), 64) + "': [" + section + "] has " + known_keys(section));
      }
      const auto values = values_of(*setting, node);
      if (!values) return wrong(node.source(), setting->name() + ": " + values.error().message);
      const auto done = set(config_, *setting, *values);
      if (!done) return wrong(node.source(), setting->name() + ": " + done.error().message);
    }
    return {};
  }
  [[nodiscard]] tl::unexpected<Error> wrong(const toml::source_region& where, const std::string& what) const {
    return fail(ErrorCode::kInvalidArgument, path_ + ":" + std::to_string(where.begin.line) + ": " + what);
  }

  Config& config_;
  const std::string& path_;
};

}  // namespace

Result<void> apply_file(Config& config, const std::string& text, const std::string& path) {
  try {
    return FileReader(config, path).root(toml::parse(text, path));
  } catch (const toml::parse_error& error) {
    return fail(ErrorCode::kInvalidArgument, path + ":" + std::to_string(error.source().begin.line) +
                                                 ": not TOML: " + printable(error.description()));
  }
}

std::string configuration_file(const GivenFlags& flags) {
  if (!flags.config_file.empty()) return client::absolute_path(flags.config_file);
  if (const std::string named = environment("MODELBROKER_CONFIG"); !named.empty()) return client::absolute_path(named);
  std::vector<std::string> places;
  if (const std::string folder = environment("CONFIGURATION_DIRECTORY"); !folder.empty()) {
    places.push_back(folder + "/config.toml");
  }
  if (::geteuid() == 0) {
    places.emplace_back("/etc/modelbroker/config.toml");
  } else if (const std::string folder = environment("XDG_CONFIG_HOME"); !folder.empty()) {
    places.push_back(folder + "/modelbroker/config.toml");
  } else if (const std::string home = environment("HOME"); !home.empty()) {
    places.push_back(home + "/.config/modelbroker/config.toml");
  }
  const auto found =
      std::ranges::find_if(places, [](const std::string& place) { return ::access(place.c_str(), F_OK) == 0; });
  return found == places.end() ? "" : *found;
}

Result<Config> read_configuration(const GivenFlags& flags) {
  Config config;
  config.run_directory = wire::default_run_directory();
  if (const std::string file = configuration_file(flags); !file.empty()) {
    MODELBROKER_ASSIGN(const std::string text, read_file(file));
    MODELBROKER_TRY(apply_file(config, text, file));
  }
  for (const Setting& setting : settings()) {
    const std::string value = environment(setting.variable());
    if (value.empty()) continue;
    if (const auto done = set_text(config, setting, value); !done) {
      return tl::unexpected(at(setting.variable(), done.error()));
    }
  }
  for (const auto& [setting, value] : flags.values) {
    if (const auto done = set_text(config, *setting, value); !done) {
      return tl::unexpected(at("--" + std::string(setting->flag), done.error()));
    }
  }
  return config;
}

std::vector<std::string> unknown_variables() {
  // For clients, for us, for tests (two); for programs that share (docs/sharing.md); and what Kubernetes gives to pods
  // beside a service called modelbroker.
  constexpr std::array<std::string_view, 12> kOthers{"ENDPOINT",      "CONFIG", "FAULTS",   "TEST_",
                                                     "AUTO",          "ONLY",   "SKIP",     "MIN_SIZE",
                                                     "RESIDENT_ONLY", "REPORT", "SERVICE_", "PORT"};
  std::vector<std::string> unknown;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    const std::string_view name = text.substr(0, text.find('='));
    if (!name.starts_with(kPrefix)) continue;
    const std::string_view rest = name.substr(kPrefix.size());
    const bool known = std::ranges::any_of(kOthers, [&](std::string_view other) { return rest.starts_with(other); }) ||
                       std::ranges::any_of(settings(), [&](const Setting& s) { return s.variable() == name; });
    if (!known) unknown.push_back(printable(name, 64));
  }
  return unknown;
}

Result<Reloaded> reload_configuration(const GivenFlags& flags, const Config& running) {
  MODELBROKER_ASSIGN(const Config fresh, read_configuration(flags));
  Reloaded reloaded{running, {}, {}};
  for (const Setting& setting : settings()) {
    if (same(fresh, running, setting)) continue;
    (setting.live ? reloaded.changed : reloaded.need_restart).push_back(setting.name());
    if (setting.live) copy(fresh, reloaded.config, setting);
  }
  return reloaded;
}

}  // namespace modelbroker::cli
