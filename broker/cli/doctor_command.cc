// `modelbroker doctor`: checks kernel, container and limits; says what is missing, what that costs, and how to fix it.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>

#include "broker/cli/commands.h"
#include "broker/cli/doctor_checks.h"
#include "broker/cli/output.h"
#include "broker/cli/programs.h"
#include "broker/cli/setting_flags.h"
#include "cpp_client/connection.h"
#include "modelbroker_version.h"
#include "shm/text.h"

namespace modelbroker::cli {
namespace {

constexpr client::Timeout kPatience{200};

client::ConnectOptions at(const std::string& endpoint) { return {.endpoint = endpoint, .timeout = kPatience}; }

// Why no broker answers there, as far as that can be seen from outside.
std::string why_silent(Os& os, const wire::Endpoint& endpoint) {
  const auto socket = os.connect_seqpacket(endpoint.fds(), kPatience);
  if (socket) return "answers only now: it was just starting";
  switch (socket.error().number) {
    case ENOENT:
    case ENOTDIR:
      return "no broker was started there";
    case ECONNREFUSED:
      return "a broker was there and has ended";
    default:
      return error_from_errno(socket.error().number, "connecting").message;
  }
}

// Who named the places that clients look at.
std::string_view chosen_by(const Common& common) {
  if (!common.endpoint.empty()) return "--endpoint";
  const char* const named = std::getenv("MODELBROKER_ENDPOINT");
  return named != nullptr && *named != '\0' ? "MODELBROKER_ENDPOINT" : "";
}

Check answering(Os& os, const client::Connection& connection, const std::string& found_by) {
  const wire::SessionHelloReply& hello = connection.hello();
  Check check{"broker", Verdict::kOk,
              "version " + printable(hello.version, 64) + ", instance '" + printable(hello.instance, 64) + "', " +
                  to_text(program_of(os, connection)) + ", answers at " + connection.endpoint().broker() + found_by};
  if (hello.version != kVersion) {
    check.verdict = Verdict::kNote;
    check.cost = std::string("this program is version ") + kVersion + ": they work together by protocol " +
                 std::to_string(wire::kProtocol) + ", and each lacks what only the other has";
    check.remedy = "restart the broker: with --on-stop keep it leaves its blocks to the next one";
  }
  return check;
}

// Whether a broker answers where clients of this environment look; otherwise, why none does, and whether one answers
// where the configuration puts it.
Check broker_check(Os& os, const Config& config, const Common& common) {
  const std::string_view chosen = chosen_by(common);
  const auto places = wire::endpoints_to_try(common.endpoint);
  if (!places) {
    return {"broker", Verdict::kProblem, places.error().message, "commands and workers cannot connect",
            "correct " + std::string(chosen.empty() ? "XDG_RUNTIME_DIR" : chosen)};
  }
  const auto connection = client::Connection::connect(os, at(common.endpoint));
  if (connection) return answering(os, *connection, chosen.empty() ? "" : " (" + std::string(chosen) + ")");
  if (connection.error().code != ErrorCode::kUnavailable) {
    return {"broker", Verdict::kProblem, printable(connection.error().message, 500),
            "commands and workers of this user cannot use it", "see the message"};
  }
  std::string looked;
  for (const wire::Endpoint& place : *places) {
    looked += (looked.empty() ? "" : "; ") + place.broker() + ": " + why_silent(os, place);
  }
  if (!chosen.empty()) looked += " (" + std::string(chosen) + " names the only place to look)";
  Check check{"broker", Verdict::kNote, "none answers. " + looked, "commands and workers have no broker to ask",
              "modelbroker serve &"};
  const std::string configured = "ipc://" + config.run_directory + "/broker.sock";
  const bool looked_there =
      std::ranges::any_of(*places, [&](const auto& place) { return place.broker() == configured; });
  if (const auto other = client::Connection::connect(os, at(configured)); !looked_there && other) {
    check.found = "one answers at " + configured + ", where clients of this environment do not look";
    check.cost = "commands and workers do not find it";
    check.remedy = "export MODELBROKER_ENDPOINT=" + configured;
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
                printable(check.found, 1000).c_str());
    if (!check.cost.empty()) std::printf("%28s cost: %s\n", "", check.cost.c_str());
    if (!check.remedy.empty()) std::printf("%28s fix:  %s\n", "", check.remedy.c_str());
  }
  std::printf("\n%zu of %zu checks found a problem.\n", problems, checks.size());
}

int examine(const GivenFlags& flags, const Common& common) {
  const auto config = read_configuration(flags);
  if (!config) return report(config.error(), common.json);
  const auto os = make_os({.directory = config->ram_directory, .disabled = config->disabled_features});
  std::vector<Check> checks{{"program", Verdict::kOk, std::string("version ") + kVersion + ", " + this_program()}};
  std::ranges::move(check_host(*os, *config), std::back_inserter(checks));
  std::ranges::move(check_memory(*os, *config), std::back_inserter(checks));
  checks.push_back(broker_check(*os, *config, common));
  const auto problems = static_cast<std::size_t>(std::ranges::count(checks, Verdict::kProblem, &Check::verdict));
  common.json ? print_json(checks, problems) : print_text(checks, problems);
  return problems == 0 ? kExitOk : exit_status(ErrorCode::kFailedPrecondition);
}

}  // namespace

void add_doctor_command(CLI::App& app, Common& common, Action& action) {
  auto* const command =
      add_verb(app, "doctor", "check kernel, container and limits; say what is missing and how to fix it",
               "  modelbroker doctor\n  modelbroker doctor --ram-directory /mnt/models-tmpfs --json");
  auto settings = std::make_shared<SettingFlags>();
  settings->add_to(*command, {"server.run_directory", "server.instance", "server.disable_features", "ram.directory",
                              "ram.any_file_system", "ram.budget", "ram.huge_pages"});
  add_client_flags(*command, common);
  command->footer("Exit status 13: a check found a problem.\n" + command->get_footer());
  command->callback(
      [&common, &action, settings] { action = [&common, settings] { return examine(settings->given(), common); }; });
}

}  // namespace modelbroker::cli
