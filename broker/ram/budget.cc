#include "broker/ram/budget.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <string_view>
#include <utility>

namespace modelbroker {
namespace {

constexpr std::uint64_t kCgroupReserve = 512ULL << 20;

// The number behind `key` in a "Key:   123 kB" text.
std::optional<std::uint64_t> number_after(std::string_view text, std::string_view key) {
  const auto at = text.find(key);
  if (at == std::string_view::npos) return std::nullopt;
  text.remove_prefix(at + key.size());
  text.remove_prefix(std::min(text.find_first_not_of(" \t"), text.size()));
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() ? std::optional(value) : std::nullopt;
}

// The tightest memory.max of our cgroup (v2) and its parents; nothing where there is no limit.
std::optional<std::uint64_t> cgroup_left(Os& os, const std::string& proc_root, const std::string& cgroup_root) {
  const auto own = os.read_text(proc_root + "/self/cgroup");
  if (!own) return std::nullopt;
  const auto at = own->find("0::");
  if (at == std::string::npos) return std::nullopt;
  std::string path = own->substr(at + 3);
  path = path.substr(0, path.find('\n'));
  if (!path.starts_with('/')) return std::nullopt;  // nothing to walk up
  std::optional<std::uint64_t> left;
  while (true) {
    const std::string folder = cgroup_root + (path == "/" ? "" : path);
    const auto most = os.read_text(folder + "/memory.max");
    const auto current = os.read_text(folder + "/memory.current");
    if (most && current) {
      const auto limit = number_after(*most, "");  // "max" is no number: no limit here
      const auto used = number_after(*current, "");
      if (limit && used) {
        const std::uint64_t rest = *limit > *used ? *limit - *used : 0;
        left = std::min(left.value_or(rest), rest);
      }
    }
    if (path.empty() || path == "/") return left;
    path = path.substr(0, path.rfind('/'));
  }
}

std::string refusal(std::uint64_t bytes, std::uint64_t limit, std::uint64_t available, const Budget::Use& use,
                    std::uint64_t reserved, const std::string& what) {
  std::string text = what + " needs " + format_size(bytes) + " of RAM";
  if (bytes > limit) {
    return text + ", more than the whole budget of " + format_size(limit) +
           ": start the broker with a larger --ram-budget";
  }
  text += "; " + format_size(available) + " of the " + format_size(limit) + " budget is free (" +
          format_size(use.made) + " resident, of it " + format_size(use.pinned) + " pinned and " +
          format_size(use.leased) + " leased";
  if (use.draining > 0) text += ", " + format_size(use.draining) + " draining";
  if (reserved > 0) text += ", " + format_size(reserved) + " being loaded";
  return text + "): unload a model or start the broker with a larger --ram-budget";
}

}  // namespace

Result<MemoryFacts> read_memory_facts(Os& os, const std::string& directory, const std::string& proc_root,
                                      const std::string& cgroup_root) {
  MemoryFacts facts;
  const auto meminfo = os.read_text(proc_root + "/meminfo");
  if (!meminfo) return fail_errno(meminfo.error().number, "reading " + proc_root + "/meminfo");
  const auto kilobytes = number_after(*meminfo, "MemAvailable:");
  if (!kilobytes) {
    return fail(ErrorCode::kFailedPrecondition, proc_root + "/meminfo has no MemAvailable: give --ram-budget");
  }
  facts.available = *kilobytes * 1024;
  const auto file_system = os.statfs(directory);
  if (!file_system) return fail_errno(file_system.error().number, "looking at '" + directory + "'");
  // A tmpfs mounted with size=0 has no limit of its own.
  facts.file_system_free = file_system->f_blocks == 0
                               ? facts.available
                               : file_system->f_bavail * static_cast<std::uint64_t>(file_system->f_bsize);
  facts.cgroup_left = cgroup_left(os, proc_root, cgroup_root);
  return facts;
}

std::uint64_t default_limit(const MemoryFacts& facts, std::uint64_t held) noexcept {
  std::uint64_t limit = std::min(facts.available / 10 * 7, facts.file_system_free / 10 * 9);
  if (facts.cgroup_left) {
    limit = std::min(limit, *facts.cgroup_left > kCgroupReserve ? *facts.cgroup_left - kCgroupReserve : 0);
  }
  return limit + held;
}

Result<void> Budget::reserve(std::uint64_t bytes, const Use& use, const std::string& what) {
  const std::uint64_t used = use.made + use.draining + reserved_;
  const std::uint64_t available = limit_ > used ? limit_ - used : 0;
  if (bytes > available) {
    return fail(ErrorCode::kResourceExhausted, refusal(bytes, limit_, available, use, reserved_, what),
                {{"needed", bytes},
                 {"limit", limit_},
                 {"available", available},
                 {"made", use.made},
                 {"reserved", reserved_},
                 {"draining", use.draining},
                 {"pinned", use.pinned},
                 {"leased", use.leased}});
  }
  reserved_ += bytes;
  return {};
}

void Budget::unreserve(std::uint64_t bytes) noexcept {
  assert(bytes <= reserved_);
  reserved_ -= bytes;
}

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

}  // namespace modelbroker
