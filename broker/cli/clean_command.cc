// `modelbroker clean`: frees an instance's blocks when no broker runs.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "broker/base/sizes.h"
#include "broker/cli/clean_instance.h"
#include "broker/cli/commands.h"
#include "broker/cli/output.h"
#include "broker/cli/setting_flags.h"
#include "shm/os.h"

namespace modelbroker::cli {
namespace {

Result<void> clean(const GivenFlags& flags, bool json) {
  MODELBROKER_ASSIGN(const Config config, read_configuration(flags));
  const std::unique_ptr<Os> os = make_plain_os();
  MODELBROKER_ASSIGN(const Cleaned cleaned, clean_instance(*os, config.ram_directory, config.instance));
  if (json) {
    const nlohmann::json object{{"blocks", cleaned.blocks}, {"bytes", cleaned.bytes}, {"left_alone", cleaned.foreign}};
    std::printf("%s\n", object.dump().c_str());
    return {};
  }
  std::printf("removed %zu blocks of instance '%s' in %s: %s; workers keep what they have mapped\n", cleaned.blocks,
              config.instance.c_str(), config.ram_directory.c_str(), format_size(cleaned.bytes).c_str());
  for (const std::string& name : cleaned.foreign) std::printf("left alone, not safe to touch: %s\n", name.c_str());
  return {};
}

}  // namespace

void add_clean_command(CLI::App& app, Common& common, Action& action) {
  auto* const command = add_verb(app, "clean", "free the memory that a broker left behind, when none is running",
                                 "  modelbroker clean\n  modelbroker clean --instance second");
  auto settings = std::make_shared<SettingFlags>();
  settings->add_to(*command, {"ram.directory", "server.instance"});
  add_json_flag(*command, common);
  command->callback([&common, &action, settings] {
    action = [&common, settings] {
      const Result<void> cleaned = clean(settings->given(), common.json);
      return cleaned ? kExitOk : report(cleaned.error(), common.json);
    };
  });
}

}  // namespace modelbroker::cli
