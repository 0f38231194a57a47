#include "broker/cli/setting_text.h"

#include <array>
#include <cstdio>

#include "shm/text.h"
#include "wire/endpoint.h"
#include "wire/frame.h"

namespace modelbroker::cli {
namespace {

using enum SettingKind;

// A basic string of TOML.
std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (const char letter : text) {
    const auto byte = static_cast<unsigned char>(letter);
    std::array<char, 8> code{};
    if (byte < 0x20 || byte == 0x7f) {
      std::snprintf(code.data(), code.size(), "\\u%04X", static_cast<unsigned>(byte));
      result += code.data();
      continue;
    }
    if (letter == '"' || letter == '\\') result += '\\';
    result += letter;
  }
  return result + "\"";
}

// Exactly, in the largest unit that divides it.
std::string size_text(std::uint64_t bytes) {
  constexpr std::array<const char*, 5> kUnits{"", "KiB", "MiB", "GiB", "TiB"};
  std::size_t unit = 0;
  for (; unit + 1 < kUnits.size() && bytes != 0 && bytes % 1024 == 0; ++unit) bytes /= 1024;
  return unit == 0 ? std::to_string(bytes) : quoted(std::to_string(bytes) + kUnits.at(unit));
}

std::string time_text(Duration time) {
  if (time < Duration(0)) return "-1";
  struct Unit {
    std::chrono::nanoseconds length;
    const char* name;
  };
  constexpr std::array<Unit, 4> kUnits{{{std::chrono::hours(1), "h"},
                                        {std::chrono::minutes(1), "m"},
                                        {std::chrono::seconds(1), "s"},
                                        {std::chrono::milliseconds(1), "ms"}}};
  for (const Unit& unit : kUnits) {
    if (time.count() != 0 && time % unit.length == Duration(0)) {
      return quoted(std::to_string(time / unit.length) + unit.name);
    }
  }
  std::array<char, 32> seconds{};  // a float of TOML has a point
  std::snprintf(seconds.data(), seconds.size(), "%.9f", std::chrono::duration<double>(time).count());
  return time.count() == 0 ? "0" : seconds.data();
}

struct AsToml {
  const Config& config;
  const Setting& setting;

  std::string operator()(std::string Config::*m) const { return quoted(config.*m); }
  std::string operator()(bool Config::*m) const {
    if (setting.kind == kSwitch) return config.*m ? "true" : "false";
    const std::size_t bar = setting.choices.find('|');
    return quoted(std::string(config.*m ? setting.choices.substr(bar + 1) : setting.choices.substr(0, bar)));
  }
  std::string operator()(unsigned Config::*m) const { return std::to_string(config.*m); }
  std::string operator()(std::uint64_t Config::*m) const { return size_text(config.*m); }
  std::string operator()(std::optional<std::uint64_t> Config::*m) const {
    return (config.*m).has_value() ? size_text(*(config.*m)) : "";
  }
  std::string operator()(Duration Config::*m) const { return time_text(config.*m); }
  std::string operator()(std::vector<std::string> Config::*m) const {
    std::string list;
    for (const std::string& word : config.*m) list += (list.empty() ? "" : ", ") + quoted(word);
    return "[" + list + "]";
  }
};

std::string comment(const Setting& setting) {
  std::string text = "# " + std::string(setting.help) + "\n# ";
  if (setting.kind != kSwitch) text += allowed(setting) + "; ";
  return text + "default: " + std::string(setting.fallback) + "; --" + std::string(setting.flag) + ", " +
         setting.variable() + (setting.live ? "; SIGHUP changes it\n" : "\n");
}

}  // namespace

Config default_configuration() {
  Config config;
  config.run_directory = wire::default_run_directory();
  return config;
}

std::string toml_value(const Config& config, const Setting& setting) {
  return std::visit(AsToml{config, setting}, setting.member);
}

std::string commented_file(const Config& config, const std::string& read) {
  std::string text =
      "# Every setting of 'modelbroker serve'. A variable overrides this file, and a flag overrides both.\n";
  text += read.empty() ? "# No configuration file is there; what is not commented out comes from variables and flags.\n"
                       : "# Read from " + printable(read, 4096) + ", variables and flags.\n";
  const Config standard = default_configuration();
  std::string_view section;
  for (const Setting& setting : settings()) {
    if (setting.section != section) {
      section = setting.section;
      text += "\n[" + std::string(section) + "]\n";
    }
    const std::string value = toml_value(config, setting);
    text += comment(setting) + (same(config, standard, setting) ? "# " : "") + std::string(setting.key) + " = " +
            (value.empty() ? quoted("48GiB") + "  # an example" : value) + "\n";
  }
  return text;
}

}  // namespace modelbroker::cli
