// The CLI's verbs. Each registers itself with the parser; the chosen one runs and gives the exit code.
//
// Threads: one. Errors go to stderr as text or JSON; exit codes: docs/protocol.md, "Errors".
#pragma once

#include <functional>
#include <optional>
#include <string>

namespace CLI {
class App;
}

namespace modelbroker::cli {

// What all verbs share.
struct Common {
  std::string endpoint;  // --endpoint
  bool json = false;     // --json
};

// The verb that the parser found, to be run after parsing.
using Action = std::function<int()>;

// A verb with its examples. Every verb has --json, so it may stand behind it.
[[nodiscard]] CLI::App* add_verb(CLI::App& app, const char* name, const char* text, const std::string& examples);
void add_json_flag(CLI::App& command, Common& common);
// --json and --endpoint, of a verb that asks a broker.
void add_client_flags(CLI::App& command, Common& common);

void add_serve_command(CLI::App& app, Common& common, Action& action);
void add_stop_command(CLI::App& app, Common& common, Action& action);
void add_client_commands(CLI::App& app, Common& common, Action& action);  // load unload pin unpin cancel
void add_list_commands(CLI::App& app, Common& common, Action& action);    // ls ps show status
void add_events_command(CLI::App& app, Common& common, Action& action);
void add_scrub_command(CLI::App& app, Common& common, Action& action);
void add_clean_command(CLI::App& app, Common& common, Action& action);
void add_doctor_command(CLI::App& app, Common& common, Action& action);
void add_bench_command(CLI::App& app, Common& common, Action& action);
void add_version_command(CLI::App& app, Common& common, Action& action);
void add_config_command(CLI::App& app, Common& common, Action& action);
void add_completion_command(CLI::App& app, Common& common, Action& action);

}  // namespace modelbroker::cli
