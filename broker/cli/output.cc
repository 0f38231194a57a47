#include "broker/cli/output.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "broker/base/sizes.h"

namespace modelbroker::cli {

int exit_status(ErrorCode code) noexcept { return code == ErrorCode::kInternal ? 1 : 10 + static_cast<int>(code); }

int report(const Error& error, bool json) {
  const std::string code(to_string(error.code));
  if (json) {
    const nlohmann::json object{{"error", {{"code", code}, {"message", error.message}, {"details", error.details}}}};
    std::fprintf(stderr, "%s\n", object.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  } else {
    std::fprintf(stderr, "modelbroker: %s: %s\n", code.c_str(), error.message.c_str());
  }
  return exit_status(error.code);
}

int finish_output(int status) {
  const bool failed = std::ferror(stdout) != 0;
  if (std::fflush(stdout) == 0 && !failed) return status;
  const int told = report(error_from_errno(errno, "writing the output"), false);
  return status == kExitOk ? told : status;
}

namespace {

bool begins_character(char byte) { return (static_cast<unsigned char>(byte) & 0xC0U) != 0x80U; }

// As a terminal counts, but for wide and combining characters.
std::size_t columns(const std::string& text) {
  return static_cast<std::size_t>(std::ranges::count_if(text, &begins_character));
}

// Where its character number `index` begins.
std::size_t byte_of(const std::string& text, std::size_t index) {
  std::size_t byte = 0;
  for (std::size_t seen = 0; byte < text.size(); ++byte) {
    if (begins_character(text[byte]) && seen++ == index) break;
  }
  return byte;
}

std::string shortened(const std::string& text, std::size_t width) {
  const std::size_t all = columns(text);
  if (all <= width) return text;
  const std::size_t begin = (width - 1) / 2, end = width - 1 - begin;
  return text.substr(0, byte_of(text, begin)) + "…" + text.substr(byte_of(text, all - end));
}

}  // namespace

void Table::print(std::size_t width) const {
  constexpr std::size_t kGap = 2, kLeastName = 12;
  std::vector<std::size_t> widths(rows_.front().size(), 0);
  for (const auto& row : rows_) {
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], columns(row[i]));
  }
  if (width > 0) {
    std::size_t others = 0;
    for (std::size_t i = 1; i < widths.size(); ++i) others += kGap + widths[i];
    const std::size_t left = width > others ? width - others : 0;
    widths[0] = std::min(widths[0], std::max(left, kLeastName));
  }
  for (const auto& row : rows_) {
    std::string line;
    for (std::size_t i = 0; i < row.size(); ++i) {
      const std::string cell = i == 0 ? shortened(row[i], widths[i]) : row[i];
      line += cell;
      if (i + 1 < row.size()) line += std::string(widths[i] - columns(cell) + kGap, ' ');
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
