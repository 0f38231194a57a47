// A configuration as text: what a config.toml would have. Threads: any. Failure: none.
#pragma once

#include <string>

#include "broker/cli/configuration.h"

namespace modelbroker::cli {

// As it is without file, variables and flags.
[[nodiscard]] Config default_configuration();

// As TOML: "48GiB" with its quotes; empty for one that has no value.
[[nodiscard]] std::string toml_value(const Config& config, const Setting& setting);

// Every setting with a comment. One that has its default is commented out. `read`: the file it was read from, or empty.
[[nodiscard]] std::string commented_file(const Config& config, const std::string& read);

}  // namespace modelbroker::cli
