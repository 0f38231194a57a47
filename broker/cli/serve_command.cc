// `modelbroker serve`: the broker itself.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "broker/base/log.h"
#include "broker/cli/commands.h"
#include "broker/cli/output.h"
#include "broker/cli/setting_flags.h"
#include "broker/cli/supervise.h"
#include "broker/server/server.h"
#include "shm/instruments.h"

namespace modelbroker::cli {
namespace {

struct Arguments {
  SettingFlags settings;
  bool supervise = false;
};

void set_up_log(const Config& config) {
  set_log_level(config.log_level);
  set_log_format(config.log_format);
}

// `hangs`: a thread is left that may wake up yet, so what it uses is not destroyed.
Result<void> serve(const Config& config, const GivenFlags& flags, const Serving& serving, bool& hangs) {
  set_up_log(config);
  start_log_thread();
  for (const std::string& variable : unknown_variables()) {
    log_warning("the variable " + variable +
                " is not a setting and changes nothing: 'modelbroker serve --help' lists all settings");
  }
  std::unique_ptr<Os> os =
      instrument(make_os({.directory = config.ram_directory, .disabled = config.disabled_features}));
  auto clock = std::make_unique<OsClock>(*os);
  MODELBROKER_ASSIGN(auto server, Server::start(*os, *clock, config, [flags](const Config& running) {
                       return reload_configuration(flags, running);
                     }));
  serving();
  auto outcome = server->run();
  hangs = server->hangs();
  if (hangs) {
    (void)server.release();
    (void)os.release();
    (void)clock.release();
  }
  return outcome;
}

int serve_and_report(const Config& config, const GivenFlags& flags, bool json, const Serving& serving) {
  bool hangs = false;
  const Result<void> served = serve(config, flags, serving, hangs);
  flush_log();
  const int status = served ? kExitOk : report(served.error(), json);
  if (hangs) {
    std::fflush(nullptr);
    std::quick_exit(status);  // main() would end the statics under that thread
  }
  return status;
}

// Each broker is started with the configuration as it is then; if that is broken, with the last good one.
int serve_supervised(const GivenFlags& flags, bool json) {
  std::optional<Config> config;
  const auto prepare = [&] {
    auto fresh = read_configuration(flags);
    if (!fresh && !config) return report(fresh.error(), json);
    if (!fresh) log_error("the configuration stays as it was: " + fresh.error().message);
    if (fresh) config = std::move(*fresh);
    set_up_log(*config);
    return kExitOk;
  };
  return supervise(prepare, [&](const Serving& serving) { return serve_and_report(*config, flags, json, serving); });
}

int run(const Arguments& arguments, bool json) {
  const GivenFlags flags = arguments.settings.given();
  if (arguments.supervise) return serve_supervised(flags, json);
  const auto config = read_configuration(flags);
  return config ? serve_and_report(*config, flags, json, [] {}) : report(config.error(), json);
}

}  // namespace

void add_serve_command(CLI::App& app, Common& common, Action& action) {
  auto* const command = add_verb(app, "serve", "run the broker, in the foreground",
                                 "  modelbroker serve &\n"
                                 "  modelbroker serve --ram-budget 48GiB --on-stop keep\n"
                                 "  modelbroker serve --config ./broker.toml --supervise\n"
                                 "  modelbroker serve --instance second --run-directory /tmp/second");
  auto arguments = std::make_shared<Arguments>();
  arguments->settings.add_to(*command);
  command->add_flag("--supervise", arguments->supervise,
                    "start the broker again when it dies (where there is no service manager to do that)");
  add_json_flag(*command, common);
  command->footer(
      "Each setting is also an environment variable and a key of the configuration file; a flag overrides the\n"
      "variable, and the variable overrides the file: --ram-budget, MODELBROKER_RAM_BUDGET, [ram] budget.\n"
      "docs/operations.md lists them all. 'modelbroker stop' stops the broker.\n" +
      command->get_footer());
  command->callback(
      [&common, &action, arguments] { action = [&common, arguments] { return run(*arguments, common.json); }; });
}

}  // namespace modelbroker::cli
