// Configuration: file, environment and flags made into one Config; the later named is the stronger.
//
// Threads: any, but the environment must not change meanwhile. Failure: invalid_argument that names the file and line,
// the variable or the flag, the setting, and what is allowed; a file that was named and is not there is not_found.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "broker/base/config.h"
#include "broker/cli/settings.h"
#include "shm/error.h"

namespace modelbroker::cli {

// What the command line said.
struct GivenFlags {
  std::string config_file;  // --config
  std::map<const Setting*, std::string> values;
};

// --config, else MODELBROKER_CONFIG; else, if it is there, $CONFIGURATION_DIRECTORY/config.toml (set by systemd), or
// for root /etc/modelbroker/config.toml and for others ~/.config/modelbroker/config.toml. Empty: none.
[[nodiscard]] std::string configuration_file(const GivenFlags& flags);
[[nodiscard]] Result<Config> read_configuration(const GivenFlags& flags);

// Environment variables with our prefix that are not settings: most likely misspelt.
[[nodiscard]] std::vector<std::string> unknown_variables();

// For SIGHUP: reads all again, and takes over into `running` what may change in a running broker.
[[nodiscard]] Result<Reloaded> reload_configuration(const GivenFlags& flags, const Config& running);

// The settings that `text` (TOML) has, put into `config`. `path` is for messages.
[[nodiscard]] Result<void> apply_file(Config& config, const std::string& text, const std::string& path);

}  // namespace modelbroker::cli
