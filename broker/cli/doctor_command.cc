// `modelbroker doctor`: what this machine gives, what is missing, what that costs, and how to get it.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>

#include "broker/cli/commands.h"
#include "broker/cli/doctor_checks.h"
#include "broker/cli/output.h"
#include "broker/cli/setting_flags.h"
#include "cpp_client/connection.h"
#include "modelbroker_version.h"

namespace modelbroker::cli {
namespace {

constexpr int kExitProblem = 10 + static_cast<int>(ErrorCode::kFailedPrecondition);

// Whether a broker answers: where clients of this environment look, else where the configuration puts one.
Check broker_check(Os& os, const Config& config, const std::string& endpoint) {
  std::string where = endpoint;
  if (const char* const named = std::getenv("MODELBROKER_ENDPOINT"); where.empty() && named != nullptr) where = named;
  if (where.empty()) where = "ipc://" + config.run_directory + "/broker.sock";
  const auto connection = client::Connection::connect(os, {.endpoint = where, .timeout = client::Timeout{200}});
  if (!connection) {
    const bool absent = connection.error().code == ErrorCode::kUnavailable;
    return {"broker", absent ? Verdict::kNote : Verdict::kProblem, wire::printable(connection.error().message, 500),
            absent ? "commands and workers have nobody to ask" : "commands and workers of this user cannot use it",
            absent ? "modelbroker serve &" : "see the message"};
  }
  const wire::SessionHelloReply& hello = connection->hello();
  Check check{"broker", Verdict::kOk,
              "version " + wire::printable(hello.version, 64) + ", instance '" + wire::printable(hello.instance, 64) +
                  "', answers at " + connection->endpoint().broker()};
  if (hello.version != kVersion) {
    check.verdict = Verdict::kNote;
    check.cost = std::string("this program is ") + kVersion;
    check.remedy = "restart the broker: it leaves its blocks to the next one with --on-stop keep";
  }
  return check;
}

void print_json(const std::vector<Check>& checks, std::size_t problems) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const Check& check : checks) {
    list.push_back({{"name", check.name},
                    {"verdict", to_string(check.verdict)},
                    {"found", check.found},
                    {"cost", check.cost},
                    {"remedy", check.remedy}});
  }
  const nlohmann::ordered_json all{{"version", kVersion}, {"problems", problems}, {"checks", list}};
  std::printf("%s\n", all.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
}

void print_text(const std::vector<Check>& checks, std::size_t problems) {
  for (const Check& check : checks) {
    std::printf("%-8s %-19s %s\n", std::string(to_string(check.verdict)).c_str(), check.name.c_str(),
                wire::printable(check.found, 1000).c_str());
    if (!check.cost.empty()) std::printf("%28s it costs: %s\n", "", check.cost.c_str());
    if (!check.remedy.empty()) std::printf("%28s to get it: %s\n", "", check.remedy.c_str());
  }
  if (problems > 0) std::printf("\n%zu of %zu checks found a problem.\n", problems, checks.size());
}

int examine(const GivenFlags& flags, const Common& common) {
  const auto config = read_configuration(flags);
  if (!config) return report(config.error(), common.json);
  const auto os = make_os({.directory = config->ram_directory, .disabled = config->disabled_features});
  std::vector<Check> checks = check_host(*os, *config);
  std::ranges::move(check_memory(*os, *config), std::back_inserter(checks));
  checks.push_back(broker_check(*os, *config, common.endpoint));
  const auto problems = static_cast<std::size_t>(std::ranges::count(checks, Verdict::kProblem, &Check::verdict));
  common.json ? print_json(checks, problems) : print_text(checks, problems);
  return problems == 0 ? kExitOk : kExitProblem;
}

}  // namespace

void add_doctor_command(CLI::App& app, Common& common, Action& action) {
  auto* const command =
      app.add_subcommand("doctor", "what kernel, container and limits give a broker, and what is missing");
  auto settings = std::make_shared<SettingFlags>();
  settings->add_to(*command, {"server.run_directory", "server.instance", "server.disable_features", "ram.directory",
                              "ram.any_file_system", "ram.budget", "ram.huge_pages"});
  command->add_flag("--json", common.json, "print JSON");
  command->footer(
      "Ends with 0, or with 13 where a check found a problem.\n"
      "Examples:\n  modelbroker doctor\n  modelbroker doctor --ram-directory /mnt/models-tmpfs --json");
  command->callback(
      [&common, &action, settings] { action = [&common, settings] { return examine(settings->given(), common); }; });
}

}  // namespace modelbroker::cli
