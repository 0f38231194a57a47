// `modelbroker config show`: the configuration as a file, with a comment on each setting.
#include <CLI/CLI.hpp>
#include <cstdio>

#include "broker/cli/ask.h"
#include "broker/cli/setting_flags.h"
#include "broker/cli/setting_text.h"

namespace modelbroker::cli {
namespace {

int show(const GivenFlags& flags, const Common& common) {
  const auto config = read_configuration(flags);
  if (!config) return report(config.error(), common.json);
  if (!common.json) {
    std::printf("%s", commented_file(*config, configuration_file(flags)).c_str());
    return kExitOk;
  }
  Json all = Json::array();
  const Config standard = default_configuration();
  for (const Setting& setting : settings()) {
    all.push_back({{"name", setting.name()},
                   {"value", toml_value(*config, setting)},
                   {"is_default", same(*config, standard, setting)},
                   {"flag", "--" + std::string(setting.flag)},
                   {"variable", setting.variable()},
                   {"live", setting.live}});
  }
  print(all);
  return kExitOk;
}

}  // namespace

void add_config_command(CLI::App& app, Common& common, Action& action) {
  auto* const command = add_verb(app, "config", "show every setting, commented, as a config.toml",
                                 "  modelbroker config show\n"
                                 "  modelbroker config show > ~/.config/modelbroker/config.toml\n"
                                 "  modelbroker config show --ram-budget 48GiB --json");
  // A command of its own below this one: as an argument, the word would be taken for 'modelbroker show'.
  auto* const show_command =
      command->add_subcommand("show", "file, variables and flags together, as 'serve' takes them");
  command->require_subcommand(1);
  auto settings = std::make_shared<SettingFlags>();
  settings->add_to(*show_command, {});
  add_json_flag(*show_command, common);
  show_command->callback(
      [&common, &action, settings] { action = [&common, settings] { return show(settings->given(), common); }; });
}

}  // namespace modelbroker::cli
