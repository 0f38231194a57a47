// What the CLI prints: errors with exit codes, JSON, tables, a progress line. Threads: one.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "shm/error.h"

namespace modelbroker::cli {

inline constexpr int kExitOk = 0;
inline constexpr int kExitUsage = 2;

// 10 and up, in the order of the codes; internal is 1. docs/protocol.md has the table.
[[nodiscard]] int exit_status(ErrorCode code) noexcept;

// Prints "modelbroker: <code>: <message>" (or a JSON object) to stderr. Returns the exit status.
int report(const Error& error, bool json);

// Sees to it that what was printed is out: `status`, or, if that cannot be, the status of an error that is told.
int finish_output(int status);

// Columns aligned, the first row a heading; numbers to the right.
class Table {
 public:
  explicit Table(std::vector<std::string> heading) { rows_.push_back(std::move(heading)); }
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  // With a `width`: the first column is shortened, "begin…end", so that no line is longer. 0: as wide as it is.
  void print(std::size_t width = 0) const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

// For what is nice to have, as a progress line: not joinable where no thread can be started.
[[nodiscard]] std::thread optional_thread(std::function<void()> work);

// One line that is rewritten while something takes long; silent when stderr is no terminal.
class ProgressLine {
 public:
  ProgressLine();
  ~ProgressLine();
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;
  [[nodiscard]] bool visible() const noexcept { return visible_; }
  void show(const std::string& what, std::uint64_t done, std::uint64_t total);

 private:
  bool visible_ = false;
  bool shown_ = false;
};

}  // namespace modelbroker::cli
