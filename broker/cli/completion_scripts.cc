// The scripts: each says for one shell what completion.h's table says.
#include <algorithm>

#include "broker/cli/completion.h"

namespace modelbroker::cli {
namespace {

std::string joined(const std::vector<std::string>& words, const char* separator) {
  std::string text;
  for (const std::string& word : words) text.append(text.empty() ? "" : separator).append(word);
  return text;
}

// The text with each of `special` behind a backslash.
std::string escaped(const std::string& text, std::string_view special) {
  std::string result;
  for (const char letter : text) {
    if (special.find(letter) != std::string_view::npos) result += '\\';
    result += letter;
  }
  return result;
}

// Within '...' of a POSIX shell.
std::string quoted(const std::string& text) {
  std::string result = "'";
  for (const char letter : text) result += letter == '\'' ? std::string("'\\''") : std::string(1, letter);
  return result + "'";
}

// ---- bash

// The command that offers words that begin as $word.
std::string bash_offer(const CompletedOption& option) {
  switch (option.words) {
    case Words::kFile:
      return "compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- \"$word\")";
    case Words::kFolder:
      return "compopt -o filenames; mapfile -t COMPREPLY < <(compgen -d -- \"$word\")";
    case Words::kModel:
      return "mapfile -t COMPREPLY < <(compgen -W \"$(modelbroker completion models 2>/dev/null)\" -- \"$word\")";
    case Words::kChoice:
      return "mapfile -t COMPREPLY < <(compgen -W '" + joined(option.choices, " ") + "' -- \"$word\")";
    case Words::kNothing:
    case Words::kText:
      break;
  }
  return ":";
}

// ---- zsh

std::string zsh_action(const CompletedOption& option) {
  switch (option.words) {
    case Words::kFile:
      return "_files";
    case Words::kFolder:
      return "_files -/";
    case Words::kModel:
      return "_modelbroker_models";
    case Words::kChoice:
      return "(" + joined(option.choices, " ") + ")";
    case Words::kNothing:
    case Words::kText:
      break;
  }
  return " ";
}

std::string zsh_flag(const CompletedOption& flag) {
  const std::string text = flag.name + "[" + escaped(flag.help, "[]\\:") + "]";
  return quoted(flag.words == Words::kNothing ? text : text + ":value:" + zsh_action(flag));
}

std::string zsh_arguments(const CompletedCommand& command) {
  std::string text = "_arguments";
  for (const CompletedOption& flag : command.flags) text += " \\\n        " + zsh_flag(flag);
  if (command.arguments.words != Words::kNothing) {
    text += " \\\n        " + quoted("*:argument:" + zsh_action(command.arguments));
  }
  return text;
}

// ---- fish

std::string fish_values(const CompletedOption& option) {
  switch (option.words) {
    case Words::kFile:
      return " -r -F";
    case Words::kFolder:
      return " -x -a '(__fish_complete_directories)'";
    case Words::kModel:
      return " -x -a '(modelbroker completion models 2>/dev/null)'";
    case Words::kChoice:
      return " -x -a '" + joined(option.choices, " ") + "'";
    case Words::kText:
      return " -x";
    case Words::kNothing:
      break;
  }
  return "";
}

std::string fish_quoted(const std::string& text) { return "'" + escaped(text, "\\'") + "'"; }

}  // namespace

std::string bash_completion(const std::vector<CompletedCommand>& commands) {
  std::string values, words;
  for (const CompletedCommand& command : commands) {
    std::vector<std::string> list;
    for (const CompletedOption& flag : command.flags) {
      list.push_back(flag.name);
      if (flag.words == Words::kNothing) continue;
      values += "    '" + command.name + " " + flag.name + "') " + bash_offer(flag) + "; return ;;\n";
    }
    if (command.name.empty()) {
      for (const CompletedCommand& other : commands) {
        if (!other.name.empty()) list.push_back(other.name);
      }
    }
    words += "    '" + command.name + "')\n";
    if (!command.name.empty()) {
      words += "      if [[ $word != -* ]]; then " + bash_offer(command.arguments) + "; return; fi\n";
    }
    words += "      mapfile -t COMPREPLY < <(compgen -W '" + joined(list, " ") + "' -- \"$word\") ;;\n";
  }
  return "# Completion of modelbroker for bash: source <(modelbroker completion bash)\n"
         "_modelbroker() {\n"
         "  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} command= i\n"
         "  local IFS=$' \\t\\n'\n"
         "  COMPREPLY=()\n"
         "  for ((i = 1; i < COMP_CWORD; i++)); do\n"
         "    case ${COMP_WORDS[i]} in\n"
         "      --endpoint) ((i++)) ;;\n"
         "      -*) ;;\n"
         "      *) command=${COMP_WORDS[i]}; break ;;\n"
         "    esac\n"
         "  done\n"
         "  case \"$command $before\" in\n" +
         values +
         "  esac\n"
         "  case $command in\n" +
         words +
         "  esac\n"
         "}\n"
         "complete -F _modelbroker modelbroker\n";
}

std::string zsh_completion(const std::vector<CompletedCommand>& commands) {
  std::string list, cases, global;
  for (const CompletedCommand& command : commands) {
    if (command.name.empty()) {
      for (const CompletedOption& flag : command.flags) global += "    " + zsh_flag(flag) + " \\\n";
      continue;
    }
    list += "    " + quoted(escaped(command.name, ":") + ":" + command.help) + "\n";
    cases += "      " + command.name + ")\n        " + zsh_arguments(command) + " ;;\n";
  }
  return "#compdef modelbroker\n"
         "# Completion of modelbroker for zsh: source <(modelbroker completion zsh)\n"
         "_modelbroker_models() {\n"
         "  local -a models=(${(f)\"$(modelbroker completion models 2>/dev/null)\"})\n"
         "  compadd -a models\n"
         "}\n"
         "_modelbroker() {\n"
         "  local curcontext=$curcontext state line\n"
         "  typeset -A opt_args\n"
         "  local -a commands=(\n" +
         list + "  )\n  _arguments -C \\\n" + global +
         "    '1: :->command' \\\n"
         "    '*:: :->arguments'\n"
         "  case $state in\n"
         "    command) _describe command commands ;;\n"
         "    arguments) case $line[1] in\n" +
         cases +
         "    esac ;;\n"
         "  esac\n"
         "}\n"
         "compdef _modelbroker modelbroker\n";
}

std::string fish_completion(const std::vector<CompletedCommand>& commands) {
  std::string text =
      "# Completion of modelbroker for fish: modelbroker completion fish | source\n"
      "function __modelbroker_is\n"
      "  set -l words (commandline -opc)\n"
      "  set -e words[1]\n"
      "  while set -q words[1]; and string match -q -- '-*' $words[1]\n"
      "    test $words[1] = --endpoint; and set -e words[1]\n"
      "    set -e words[1]\n"
      "  end\n"
      "  test \"$words[1]\" = $argv[1]\n"
      "end\n"
      "complete -c modelbroker -e\n"
      "complete -c modelbroker -f\n";
  for (const CompletedCommand& command : commands) {
    const std::string when = " -n '__modelbroker_is \"" + command.name + "\"'";
    const std::string begin = "complete -c modelbroker" + when;
    for (const CompletedOption& flag : command.flags) {
      text += begin + " -l " + flag.name.substr(2) + fish_values(flag) + " -d " + fish_quoted(flag.help) + "\n";
    }
    if (command.name.empty()) continue;
    text += "complete -c modelbroker -n '__modelbroker_is \"\"' -a " + command.name + " -d " +
            fish_quoted(command.help) + "\n";
    const Words words = command.arguments.words;
    if (words == Words::kFile) text += begin + " -F\n";
    if (words == Words::kModel || words == Words::kChoice) text += begin + fish_values(command.arguments) + "\n";
  }
  return text;
}

}  // namespace modelbroker::cli
