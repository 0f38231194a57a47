// Settings as flags of a command. Threads: one.
#pragma once

#include <initializer_list>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "broker/cli/configuration.h"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace modelbroker::cli {

class SettingFlags {
 public:
  // Adds --config and the flags of all settings, or of those named ("ram.directory"). Must live while `command` parses.
  void add_to(CLI::App& command, std::initializer_list<std::string_view> names = {});
  // After parsing.
  [[nodiscard]] GivenFlags given() const;

 private:
  std::string config_file_;
  std::map<const Setting*, std::string> texts_;
  std::map<const Setting*, bool> switches_;
  std::map<const Setting*, CLI::Option*> options_;
};

}  // namespace modelbroker::cli
