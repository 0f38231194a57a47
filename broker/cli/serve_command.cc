// `modelbroker serve`: the broker itself.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <memory>
#include <sstream>

#include "broker/cli/commands.h"
#include "broker/cli/output.h"
#include "broker/cli/paths.h"
#include "broker/server/log.h"
#include "broker/server/server.h"
#include "shm/instruments.h"
#include "wire/endpoint.h"

namespace modelbroker::cli {
namespace {

struct Arguments {
  std::string run_directory, ram_directory = "/dev/shm", instance = "default", budget, on_stop = "free";
  std::string huge_pages = "auto", disabled, log_level = "info";
  double grace = 15, hung = 15;
  bool any_file_system = false;
};

Result<Duration> seconds(double value, const char* flag) {
  if (!std::isfinite(value) || value <= 0 || value > 86400) {
    return fail(ErrorCode::kInvalidArgument, std::string(flag) + " must be between 0 and 86400 seconds");
  }
  return std::chrono::duration_cast<Duration>(std::chrono::duration<double>(value));
}

// A feature that is misspelt would stay on, and nobody would notice.
Result<void> check_feature_names(const std::string& list) {
  std::string known = "all";
  for (const auto& [name, member] : kFeatureNames) known.append(", ").append(name);
  const auto is_known = [](const std::string& word) {
    return word == "all" || std::ranges::any_of(kFeatureNames, [&](const auto& f) { return f.first == word; });
  };
  std::istringstream words(list);
  std::string word;
  while (std::getline(words, word, ',') && is_known(word)) {
  }
  if (!words) return {};
  return fail(ErrorCode::kInvalidArgument, "--disable-features: '" + word + "' is none of " + known);
}

Result<Config> config_of(const Arguments& arguments) {
  Config config;
  // Told to clients, who stand elsewhere: absolute.
  config.run_directory =
      arguments.run_directory.empty() ? wire::default_run_directory() : absolute_path(arguments.run_directory);
  config.ram_directory = absolute_path(arguments.ram_directory);
  config.instance = arguments.instance;
  config.keep_on_stop = arguments.on_stop == "keep";
  config.huge_pages = arguments.huge_pages != "off";
  config.any_file_system = arguments.any_file_system;
  MODELBROKER_TRY(check_feature_names(arguments.disabled));
  config.disabled_features = arguments.disabled;
  if (!arguments.budget.empty()) {
    MODELBROKER_ASSIGN(config.ram_budget, parse_size(arguments.budget));
  }
  MODELBROKER_ASSIGN(config.grace, seconds(arguments.grace, "--grace"));
  MODELBROKER_ASSIGN(config.hung, seconds(arguments.hung, "--hung"));
  return config;
}

Result<void> serve(const Arguments& arguments) {
  MODELBROKER_ASSIGN(const Config config, config_of(arguments));
  set_log_level(arguments.log_level);
  const std::unique_ptr<Os> os =
      instrument(make_os({.directory = config.ram_directory, .disabled = config.disabled_features}));
  const SystemClock clock;
  MODELBROKER_ASSIGN(const auto server, Server::start(*os, clock, config));
  return server->run();
}

}  // namespace

void add_serve_command(CLI::App& app, Common& common, Action& action) {
  auto* const command = app.add_subcommand("serve", "run the broker (in the foreground)");
  auto arguments = std::make_shared<Arguments>();
  command
      ->add_option("--run-directory", arguments->run_directory,
                   "sockets, lock and state (default: " + wire::default_run_directory() + ")")
      ->envname("MODELBROKER_RUN_DIRECTORY");
  command->add_option("--ram-directory", arguments->ram_directory, "where blocks live: a tmpfs")
      ->envname("MODELBROKER_RAM_DIRECTORY")
      ->capture_default_str();
  command
      ->add_option("--ram-budget", arguments->budget,
                   "most bytes to hold, e.g. 48GiB (default: from what the machine has free)")
      ->envname("MODELBROKER_RAM_BUDGET");
  command->add_option("--instance", arguments->instance, "name of this broker among several in one RAM directory")
      ->envname("MODELBROKER_INSTANCE")
      ->capture_default_str();
  command
      ->add_option("--on-stop", arguments->on_stop, "at a clean stop: free the memory, or keep it for the next broker")
      ->envname("MODELBROKER_ON_STOP")
      ->check(CLI::IsMember({"free", "keep"}))
      ->capture_default_str();
  command->add_option("--huge-pages", arguments->huge_pages, "2 MiB pages where the kernel gives them, or never")
      ->envname("MODELBROKER_HUGE_PAGES")
      ->check(CLI::IsMember({"auto", "off"}))
      ->capture_default_str();
  command->add_option("--grace", arguments->grace, "seconds after a start in which leases may be stated again")
      ->capture_default_str();
  command->add_option("--hung", arguments->hung, "seconds of silence after which a peer without a pid is given up")
      ->capture_default_str();
  command->add_option("--log-level", arguments->log_level, "how much to log")
      ->envname("MODELBROKER_LOG_LEVEL")
      ->check(CLI::IsMember({"debug", "info", "warning", "error"}))
      ->capture_default_str();
  command
      ->add_option("--disable-features", arguments->disabled,
                   "kernel features to do without, e.g. collapse,write_lease (for tests)")
      ->envname("MODELBROKER_DISABLE_FEATURES");
  command->add_flag("--any-file-system", arguments->any_file_system, "allow a RAM directory that is no tmpfs");
  command->footer(
      "Examples:\n"
      "  modelbroker serve &\n"
      "  modelbroker serve --ram-budget 48GiB --on-stop keep\n"
      "  modelbroker serve --instance second --run-directory /tmp/second");
  command->callback([&common, &action, arguments] {
    action = [&common, arguments] {
      const Result<void> served = serve(*arguments);
      return served ? kExitOk : report(served.error(), common.json);
    };
  });
}

}  // namespace modelbroker::cli
