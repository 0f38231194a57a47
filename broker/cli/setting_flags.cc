#include "broker/cli/setting_flags.h"

#include <CLI/CLI.hpp>
#include <algorithm>

namespace modelbroker::cli {
namespace {

// A word that can only be wrong usage, reported with the hint at --help.
bool is_usage(SettingKind kind) {
  using enum SettingKind;
  return kind == kChoice || kind == kTime || kind == kKeep || kind == kCount;
}

std::string check(const Setting& setting, const std::string& text) {
  Config scratch;
  const auto done = set(scratch, setting, {text});
  return done ? std::string() : done.error().message;
}

}  // namespace

void SettingFlags::add_to(CLI::App& command, std::initializer_list<std::string_view> names) {
  command
      .add_option("--config", config_file_,
                  "settings (default: MODELBROKER_CONFIG, /etc/modelbroker/config.toml for root, "
                  "~/.config/modelbroker/config.toml for others)")
      ->type_name("FILE");
  for (const Setting& setting : settings()) {
    if (names.size() > 0 && std::ranges::count(names, setting.name()) == 0) continue;
    const std::string flag = "--" + std::string(setting.flag);
    const std::string help = std::string(setting.help) + " (default: " + std::string(setting.fallback) + ")";
    if (setting.kind == SettingKind::kSwitch) {
      options_[&setting] = command.add_flag(flag, switches_[&setting], std::string(setting.help));
      continue;
    }
    CLI::Option* const option = command.add_option(flag, texts_[&setting], help);
    if (setting.kind == SettingKind::kChoice) option->type_name(std::string(setting.choices));
    if (setting.kind == SettingKind::kPath || setting.kind == SettingKind::kPaths) option->type_name("PATH");
    if (is_usage(setting.kind)) option->check([&setting](const std::string& text) { return check(setting, text); });
    options_[&setting] = option;
  }
}

GivenFlags SettingFlags::given() const {
  GivenFlags flags{config_file_, {}};
  for (const auto& [setting, option] : options_) {
    if (option->count() == 0) continue;
    const auto on = switches_.find(setting);
    flags.values.emplace(setting, on == switches_.end() ? texts_.at(setting) : on->second ? "true" : "false");
  }
  return flags;
}

}  // namespace modelbroker::cli
