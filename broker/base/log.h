// The broker's log: one line an event, on standard error, for people or as JSON.
//
// With its thread running, a log that nobody reads or a full disk never stops anybody: lines wait in a bounded queue,
// the oldest give way, and their number is told when it flows again. Without it (before, and in programs that do not
// start it) a line that cannot be written at once is dropped. Threads: any. Failure: none.
#pragma once

#include <string>
#include <string_view>

namespace modelbroker {

void start_log_thread();  // once, in the process that stays: after any fork
// Waits until all is written that was said, but not for a reader that does not read.
void flush_log();

void set_log_level(const std::string& level);    // "debug", "info", "warning" or "error"
void set_log_format(const std::string& format);  // "text" or "json"
void log_debug(std::string_view text);
void log_info(std::string_view text);
void log_warning(std::string_view text);
void log_error(std::string_view text);

}  // namespace modelbroker
