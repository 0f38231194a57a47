// Shell completion, made from the parser's own table: commands, flags and what may stand behind them.
//
// Threads: one. Failure: none.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace modelbroker::cli {

enum class Words : std::uint8_t {
  kNothing,  // a flag without a value; a command without arguments
  kText,     // anything
  kFile,
  kFolder,
  kModel,   // what `modelbroker completion models` prints
  kChoice,  // one of `choices`
};

struct CompletedOption {
  std::string name;  // "--log-level"; empty: the command's arguments
  std::string help;
  Words words = Words::kNothing;
  std::vector<std::string> choices{};
};

struct CompletedCommand {
  std::string name;  // empty: the program itself
  std::string help;
  std::vector<CompletedOption> flags{};
  CompletedOption arguments{};
};

// The program first, then its commands.
[[nodiscard]] std::vector<CompletedCommand> completed_commands(const CLI::App& app);

[[nodiscard]] std::string bash_completion(const std::vector<CompletedCommand>& commands);
[[nodiscard]] std::string zsh_completion(const std::vector<CompletedCommand>& commands);
[[nodiscard]] std::string fish_completion(const std::vector<CompletedCommand>& commands);

}  // namespace modelbroker::cli
