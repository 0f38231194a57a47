// The command line: what all verbs have in common, and help for whoever mistypes one. Threads: one.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace modelbroker::cli {

// Parses, runs the verb and gives the exit status. Without arguments: the help.
[[nodiscard]] int run_command_line(int argc, const char* const* argv);

// The one of `names` that was most likely meant by `word`; empty if none is near.
[[nodiscard]] std::string nearest(std::string_view word, const std::vector<std::string>& names);

}  // namespace modelbroker::cli
