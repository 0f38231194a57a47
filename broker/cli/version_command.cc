// `modelbroker version`: which program this is, and which broker it reaches.
#include <CLI/CLI.hpp>
#include <cstdio>

#include "broker/cli/ask.h"
#include "broker/cli/programs.h"
#include "modelbroker_version.h"

namespace modelbroker::cli {
namespace {

constexpr client::Timeout kPatience{200};

Json program_json() { return {{"version", kVersion}, {"protocol", wire::kProtocol}, {"path", this_program()}}; }

Json broker_json(const client::Connection& connection) {
  const wire::SessionHelloReply& hello = connection.hello();
  const BrokerProgram program = program_of(plain_os(), connection);
  return {{"version", hello.version},
          {"instance", hello.instance},
          {"endpoint", connection.endpoint().broker()},
          {"pid", program.pid},
          {"path", program.path}};
}

void print_broker(const client::Connection& connection) {
  const wire::SessionHelloReply& hello = connection.hello();
  std::printf("broker   %s, %s\n", shown(hello.version).c_str(), to_text(program_of(plain_os(), connection)).c_str());
  std::printf("         instance '%s' at %s\n", shown(hello.instance).c_str(), connection.endpoint().broker().c_str());
  if (hello.version != kVersion) {
    std::printf("They differ, and work together by protocol %u. A broker that is restarted has this version.\n",
                wire::kProtocol);
  }
}

// That no broker answers is an answer; one that refuses us is an error, after what is known.
int tell(const Common& common) {
  const auto connection = client::Connection::connect(plain_os(), {.endpoint = common.endpoint, .timeout = kPatience});
  const bool refused = !connection && connection.error().code != ErrorCode::kUnavailable;
  if (common.json) {
    Json all{{"program", program_json()}, {"broker", nullptr}};
    if (connection) all["broker"] = broker_json(*connection);
    print(all);
  } else {
    std::printf("program  %s, %s\n", kVersion, shown(this_program()).c_str());
    if (connection) print_broker(*connection);
    if (!connection && !refused) std::printf("broker   none: %s\n", shown(connection.error().message).c_str());
  }
  return refused ? report(connection.error(), common.json) : kExitOk;
}

}  // namespace

void add_version_command(CLI::App& app, Common& common, Action& action) {
  auto* const command = add_verb(app, "version", "show which program this is, and which broker it reaches",
                                 "  modelbroker version\n  modelbroker version --json");
  add_client_flags(*command, common);
  command->callback([&common, &action] { action = [&common] { return tell(common); }; });
}

}  // namespace modelbroker::cli
