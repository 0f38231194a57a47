// `modelbroker completion`: prints what a shell needs to complete our commands.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <sstream>

#include "broker/cli/ask.h"
#include "broker/cli/completion.h"
#include "shm/text.h"

namespace modelbroker::cli {
namespace {

constexpr client::Timeout kPatience{200};

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> list;
  std::istringstream rest(text);
  for (std::string word; std::getline(rest, word, separator);) list.push_back(word);
  return list;
}

// Help says what stands behind a flag by a word: MODEL, FILE, PATH, TEXT, or "free|keep".
CompletedOption completed(const CLI::App& app, const CLI::Option& option) {
  const bool argument = option.get_positional();
  const std::string word = argument ? option.get_name(true) : option.get_type_name();
  const std::string kind =
      argument && option.get_type_name().find('|') != std::string::npos ? option.get_type_name() : word;
  CompletedOption found{argument ? "" : "--" + option.get_lnames().front(), option.get_description()};
  if (!argument && option.get_items_expected_max() == 0) return found;
  if (word == "COMMAND") {
    found.words = Words::kChoice;
    for (const CLI::App* const command : app.get_subcommands(nullptr)) found.choices.push_back(command->get_name());
  } else if (kind.find('|') != std::string::npos) {
    found.words = Words::kChoice;
    found.choices = split(kind, '|');
  } else {
    found.words = word == "MODEL"  ? Words::kModel
                  : word == "FILE" ? Words::kFile
                  : word == "PATH" ? Words::kFolder
                                   : Words::kText;
  }
  return found;
}

CompletedCommand completed(const CLI::App& app, const CLI::App& command) {
  CompletedCommand found{&app == &command ? "" : command.get_name(), command.get_description()};
  for (const CLI::Option* const option : command.get_options()) {
    if (option->get_group().empty()) continue;  // hidden
    if (option->get_positional()) {
      found.arguments = completed(app, *option);
    } else if (!option->get_lnames().empty()) {
      found.flags.push_back(completed(app, *option));
    }
  }
  if (&app == &command) return found;
  for (const CLI::App* const inner : command.get_subcommands(nullptr)) {  // config show
    const CompletedCommand below = completed(app, *inner);
    found.flags.insert(found.flags.end(), below.flags.begin(), below.flags.end());
    found.arguments.words = Words::kChoice;
    found.arguments.choices.push_back(below.name);
  }
  return found;
}

// For the scripts: where names cannot be had, the line that is typed must not show an error.
int print_models(const Common& common) {
  auto connection = client::Connection::connect(plain_os(), {.endpoint = common.endpoint, .timeout = kPatience});
  if (!connection) return kExitOk;
  const auto list = connection->request<wire::ModelListReply>("model.list", wire::ModelList{}, kShort);
  if (!list) return kExitOk;
  for (const wire::ModelInfo& model : list->models) {
    std::printf("%s\n", shown(model.name).c_str());
    for (const std::string& alias : model.aliases) std::printf("%s\n", shown(alias).c_str());
  }
  return kExitOk;
}

int print_script(const CLI::App& app, const std::string& shell) {
  const auto commands = completed_commands(app);
  const std::string script = shell == "bash"  ? bash_completion(commands)
                             : shell == "zsh" ? zsh_completion(commands)
                                              : fish_completion(commands);
  std::printf("%s", script.c_str());
  return kExitOk;
}

}  // namespace

std::vector<CompletedCommand> completed_commands(const CLI::App& app) {
  std::vector<CompletedCommand> commands{completed(app, app)};
  for (const CLI::App* const command : app.get_subcommands(nullptr)) commands.push_back(completed(app, *command));
  return commands;
}

void add_completion_command(CLI::App& app, Common& common, Action& action) {
  auto* const command =
      add_verb(app, "completion", "print what your shell needs to complete commands",
               "  source <(modelbroker completion bash)               # in ~/.bashrc\n"
               "  source <(modelbroker completion zsh)                # in ~/.zshrc, after compinit\n"
               "  modelbroker completion fish | source                # in ~/.config/fish/config.fish\n"
               "  modelbroker completion models                       # names, one per line");
  auto what = std::make_shared<std::string>();
  command->add_option("SHELL", *what, "bash, zsh or fish; or 'models', which the scripts ask for")
      ->required()
      ->type_name("bash|zsh|fish|models")
      ->check([](const std::string& word) {
        const bool known = word == "bash" || word == "zsh" || word == "fish" || word == "models";
        return known ? "" : "'" + printable(word, 64) + "' is not bash, zsh, fish or models";
      });
  command->add_option("--endpoint", common.endpoint, "broker whose models are meant (default: as everywhere)");
  command->callback([&app, &common, &action, what] {
    action = [&app, &common, what] { return *what == "models" ? print_models(common) : print_script(app, *what); };
  });
}

}  // namespace modelbroker::cli
