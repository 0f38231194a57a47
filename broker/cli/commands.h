// The CLI's verbs. Each registers itself with the parser; the chosen one runs and gives the exit code.
//
// Threads: one. Errors go to stderr as text or JSON; exit codes: docs/operations.md.
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

void add_client_commands(CLI::App& app, Common& common, Action& action);  // load unload ls ps show pin unpin status
void add_serve_command(CLI::App& app, Common& common, Action& action);
void add_events_command(CLI::App& app, Common& common, Action& action);
void add_scrub_command(CLI::App& app, Common& common, Action& action);
void add_clean_command(CLI::App& app, Common& common, Action& action);
void add_doctor_command(CLI::App& app, Common& common, Action& action);
void add_bench_command(CLI::App& app, Common& common, Action& action);

}  // namespace modelbroker::cli
