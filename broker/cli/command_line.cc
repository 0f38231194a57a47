#include "broker/cli/command_line.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cstdio>
#include <numeric>
#include <utility>

#include "broker/cli/commands.h"
#include "broker/cli/output.h"
#include "modelbroker_version.h"
#include "shm/limits.h"
#include "shm/text.h"

namespace modelbroker::cli {
namespace {

constexpr auto* kEndpointHelp =
    "broker to ask: ipc:///<run directory>/broker.sock (default: MODELBROKER_ENDPOINT, "
    "then the usual places)";

// What other programs call it.
constexpr std::array<std::pair<std::string_view, std::string_view>, 13> kElsewhere{{{"add", "load"},
                                                                                    {"delete", "unload"},
                                                                                    {"info", "show"},
                                                                                    {"inspect", "show"},
                                                                                    {"kill", "stop"},
                                                                                    {"list", "ls"},
                                                                                    {"quit", "stop"},
                                                                                    {"remove", "unload"},
                                                                                    {"rm", "unload"},
                                                                                    {"run", "serve"},
                                                                                    {"shutdown", "stop"},
                                                                                    {"start", "serve"},
                                                                                    {"top", "ps"}}};

// Edits that make one of the other: a letter more, less, or other, or two neighbours exchanged.
std::size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> before, last(b.size() + 1), row(b.size() + 1);
  std::iota(last.begin(), last.end(), 0);
  for (std::size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + (a[i - 1] == b[j - 1] ? 0U : 1U)});
      const bool exchanged = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
      if (exchanged) row[j] = std::min(row[j], before[j - 2] + 1);
    }
    before = std::exchange(last, row);
  }
  return last.back();
}

std::vector<std::string> names_of(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* const command : app.get_subcommands(nullptr)) names.push_back(command->get_name());
  return names;
}

const CLI::App* find_command(const CLI::App& app, const std::string& name) {
  const auto commands = app.get_subcommands(nullptr);
  const auto found = std::ranges::find(commands, name, &CLI::App::get_name);
  return found == commands.end() ? nullptr : *found;
}

// The first argument that is neither a flag nor a flag's value.
std::string first_word(int argc, const char* const* argv) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument == "--endpoint") {
      ++i;
    } else if (!argument.starts_with('-')) {
      return std::string(argument);
    }
  }
  return "";
}

int refuse_word(const CLI::App& app, const std::string& word) {
  const std::string meant = nearest(word, names_of(app));
  std::fprintf(stderr, "modelbroker: there is no command '%s'%s ('modelbroker --help' lists all)\n",
               printable(word, 64).c_str(), meant.empty() ? "" : (": did you mean '" + meant + "'?").c_str());
  return kExitUsage;
}

void add_help_command(CLI::App& app, Action& action) {
  CLI::App* const command =
      add_verb(app, "help", "show what a command does, with examples", "  modelbroker help load\n  modelbroker help");
  auto name = std::make_shared<std::string>();
  command->add_option("COMMAND", *name, "which one (default: list them all)");
  command->callback([&app, &action, name] {
    action = [&app, name] {
      const CLI::App* const wanted = name->empty() ? nullptr : find_command(app, *name);
      if (!name->empty() && wanted == nullptr) return refuse_word(app, *name);
      // app.help() would be that of this command, which was parsed.
      const std::string all = app.get_formatter()->make_help(&app, app.get_name(), CLI::AppFormatMode::Normal);
      std::printf("%s", wanted == nullptr ? all.c_str() : wanted->help(app.get_name()).c_str());
      return kExitOk;
    };
  });
}

void add_commands(CLI::App& app, Common& common, Action& action) {
  add_serve_command(app, common, action);
  add_stop_command(app, common, action);
  add_client_commands(app, common, action);
  add_list_commands(app, common, action);
  add_events_command(app, common, action);
  add_scrub_command(app, common, action);
  add_clean_command(app, common, action);
  add_doctor_command(app, common, action);
  add_bench_command(app, common, action);
  add_version_command(app, common, action);
  add_config_command(app, common, action);
  add_completion_command(app, common, action);
  add_help_command(app, action);
}

// These have a broker of their own, or none: an endpoint that they ignored would be a surprise.
int refuse_endpoint(const CLI::App& command) {
  const bool has_directory = command.get_option_no_throw("--run-directory") != nullptr;
  std::fprintf(stderr, "modelbroker: '%s' does not take --endpoint%s ('modelbroker %s --help' has its flags)\n",
               command.get_name().c_str(), has_directory ? ": choose its place with --run-directory" : "",
               command.get_name().c_str());
  return kExitUsage;
}

}  // namespace

std::string nearest(std::string_view word, const std::vector<std::string>& names) {
  const auto* const elsewhere = std::ranges::find(kElsewhere, word, [](const auto& pair) { return pair.first; });
  if (elsewhere != kElsewhere.end()) return std::string(elsewhere->second);
  std::string best;
  std::size_t least = word.size() <= 4 ? 2 : 3;  // one edit in a short word, two in a long one
  for (const std::string& name : names) {
    const bool begun = word.size() >= 2 && name.starts_with(word);
    const std::size_t edits = begun ? 1 : distance(word, name);
    if (edits < least && edits < name.size()) {
      least = edits;
      best = name;
    }
  }
  return best;
}

CLI::App* add_verb(CLI::App& app, const char* name, const char* text, const std::string& examples) {
  CLI::App* const command = app.add_subcommand(name, text);
  command->footer("Examples:\n" + examples);
  return command;
}

void add_json_flag(CLI::App& command, Common& common) { command.add_flag("--json", common.json, "print JSON"); }

void add_client_flags(CLI::App& command, Common& common) {
  add_json_flag(command, common);
  command.add_option("--endpoint", common.endpoint, kEndpointHelp);
}

int run_command_line(int argc, const char* const* argv) {
  survive_file_size_limit();  // before the first probe makes a file
  CLI::App app{"modelbroker: load model weights once, attach from every process"};
  app.name("modelbroker");
  app.set_version_flag("--version", std::string("modelbroker ") + kVersion);
  app.require_subcommand(1);
  app.footer(
      "Examples:\n"
      "  modelbroker serve &\n"
      "  modelbroker load ./model.safetensors --name m\n"
      "  modelbroker ps\n"
      "  python -c \"import modelbroker; print(len(modelbroker.connect().attach('m').state_dict()))\"\n"
      "  modelbroker stop\n"
      "\n"
      "'modelbroker help COMMAND' says more. Exit status: 0 done, 1 internal error, 2 wrong usage, 10 and up: one per\n"
      "error code (not_found is 11).");
  Common common;
  add_client_flags(app, common);
  Action action;
  add_commands(app, common, action);
  if (argc <= 1) {
    std::printf("%s", app.help().c_str());
    return finish_output(kExitOk);
  }
  const std::string word = first_word(argc, argv);
  if (!word.empty() && find_command(app, word) == nullptr) return refuse_word(app, word);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? finish_output(kExitOk) : kExitUsage;
  }
  const CLI::App& command = *app.get_subcommands().front();
  if (!common.endpoint.empty() && command.get_option_no_throw("--endpoint") == nullptr &&
      command.get_name() != "help") {
    return refuse_endpoint(command);
  }
  return finish_output(action());
}

}  // namespace modelbroker::cli
