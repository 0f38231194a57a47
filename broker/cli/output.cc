#include "broker/cli/output.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "broker/ram/sizes.h"

namespace modelbroker::cli {

int report(const Error& error, bool json) {
  const std::string code(to_string(error.code));
  if (json) {
    const nlohmann::json object{{"error", {{"code", code}, {"message", error.message}, {"details", error.details}}}};
    std::fprintf(stderr, "%s\n", object.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  } else {
    std::fprintf(stderr, "modelbroker: %s: %s\n", code.c_str(), error.message.c_str());
  }
  return error.code == ErrorCode::kInternal ? 1 : 10 + static_cast<int>(error.code);
}

int finish_output(int status) {
  const bool failed = std::ferror(stdout) != 0;
  if (std::fflush(stdout) == 0 && !failed) return status;
  const int told = report(error_from_errno(errno, "writing the output"), false);
  return status == kExitOk ? told : status;
}

void Table::print() const {
  std::vector<std::size_t> widths(rows_.front().size(), 0);
  for (const auto& row : rows_) {
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  for (const auto& row : rows_) {
    std::string line;
    for (std::size_t i = 0; i < row.size(); ++i) {
      line += row[i];
      if (i + 1 < row.size()) line += std::string(widths[i] - row[i].size() + 2, ' ');
    }
    std::printf("%s\n", line.c_str());
  }
}

std::thread optional_thread(std::function<void()> work) {
  try {
    return std::thread(std::move(work));
  } catch (const std::system_error&) {
    return {};
  }
}

ProgressLine::ProgressLine() : visible_(::isatty(STDERR_FILENO) == 1) {}

void ProgressLine::show(const std::string& what, std::uint64_t done, std::uint64_t total) {
  if (!visible_ || total == 0) return;
  constexpr int kWidth = 30;
  const double share = static_cast<double>(done) / static_cast<double>(total);
  std::string bar(static_cast<std::size_t>(share * kWidth), '#');
  bar.resize(kWidth, '.');
  std::fprintf(stderr, "\r\033[K%s [%s] %3.0f %%  %s of %s", what.c_str(), bar.c_str(), share * 100,
               format_size(done).c_str(), format_size(total).c_str());
  std::fflush(stderr);
  shown_ = true;
}

ProgressLine::~ProgressLine() {
  if (shown_) std::fprintf(stderr, "\r\033[K");
}

}  // namespace modelbroker::cli
