// The broker's log: one readable line an event, on standard error. Threads: any.
#pragma once

#include <string>
#include <string_view>

namespace modelbroker {

// level: "debug", "info", "warning" or "error".
void set_log_level(const std::string& level);
void log_debug(std::string_view text);
void log_info(std::string_view text);
void log_warning(std::string_view text);
void log_error(std::string_view text);

}  // namespace modelbroker
