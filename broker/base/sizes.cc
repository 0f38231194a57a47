#include "broker/base/sizes.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <utility>

namespace modelbroker {

Result<std::uint64_t> parse_size(std::string_view text) {
  const auto refuse = [&] {
    return fail(ErrorCode::kInvalidArgument,
                "'" + std::string(text.substr(0, 64)) +
                    "' is no size: write bytes, or a number with KiB MiB GiB TiB (binary) or KB MB GB TB (decimal)");
  };
  double number = 0;
  const char* const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, number, std::chars_format::fixed);
  if (error != std::errc() || !std::isfinite(number) || number < 0) return refuse();
  std::string_view unit(rest, static_cast<std::size_t>(end - rest));
  unit.remove_prefix(std::min(unit.find_first_not_of(' '), unit.size()));
  static constexpr std::array<std::pair<std::string_view, double>, 10> kUnits{{{"", 1},
                                                                               {"B", 1},
                                                                               {"KiB", 0x1p10},
                                                                               {"MiB", 0x1p20},
                                                                               {"GiB", 0x1p30},
                                                                               {"TiB", 0x1p40},
                                                                               {"KB", 1e3},
                                                                               {"MB", 1e6},
                                                                               {"GB", 1e9},
                                                                               {"TB", 1e12}}};
  const auto* const found = std::ranges::find(kUnits, unit, &std::pair<std::string_view, double>::first);
  if (found == kUnits.end() || number * found->second >= 0x1p63) return refuse();
  return static_cast<std::uint64_t>(number * found->second);
}

std::string format_size(std::uint64_t bytes) {
  static constexpr std::array kUnits{"B", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 1024 && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), unit == 0 ? "%.0f %s" : "%.1f %s", value, kUnits.at(unit));
  return text.data();
}

Duration keep_alive_from_seconds(double seconds) {
  if (std::isnan(seconds) || seconds < 0) return Duration(-1);
  constexpr double kMost = 100.0 * 365 * 24 * 3600;  // what is longer is for ever, and fits no clock
  return seconds > kMost ? Duration(-1) : Duration(static_cast<Duration::rep>(seconds * 1e9));
}

std::optional<double> parse_seconds(std::string_view text) {
  double number = 0;
  const char* const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc() || !std::isfinite(number)) return std::nullopt;
  static constexpr std::array<std::pair<std::string_view, double>, 6> kUnits{
      {{"", 1}, {"ms", 1e-3}, {"s", 1}, {"m", 60}, {"h", 3600}, {"d", 86400}}};
  const std::string_view unit(rest, static_cast<std::size_t>(end - rest));
  const auto* const found = std::ranges::find(kUnits, unit, &std::pair<std::string_view, double>::first);
  return found == kUnits.end() ? std::nullopt : std::optional(number * found->second);
}

Result<Duration> parse_keep_alive(std::string_view text) {
  if (const auto seconds = parse_seconds(text)) return keep_alive_from_seconds(*seconds);
  return fail(ErrorCode::kInvalidArgument, "'" + std::string(text.substr(0, 64)) +
                                               "' is no time to keep a model: write seconds, a number with ms, s, m, "
                                               "h or d, or -1 for ever");
}

}  // namespace modelbroker
