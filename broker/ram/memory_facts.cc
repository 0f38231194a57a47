#include "broker/ram/memory_facts.h"

#include <algorithm>
#include <charconv>
#include <string_view>

#include "broker/base/sizes.h"

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

Result<std::uint64_t> memory_available(Os& os, const KernelFolders& folders) {
  const auto meminfo = os.read_text(folders.proc + "/meminfo");
  if (!meminfo) return fail_errno(meminfo.error().number, "reading " + folders.proc + "/meminfo");
  const auto kilobytes = number_after(*meminfo, "MemAvailable:");
  if (kilobytes) return *kilobytes * 1024;
  return fail(ErrorCode::kFailedPrecondition, folders.proc + "/meminfo has no MemAvailable: give --ram-budget");
}

}  // namespace

Result<MemoryFacts> read_memory_facts(Os& os, const std::string& directory, const KernelFolders& folders) {
  MemoryFacts facts;
  MODELBROKER_ASSIGN(facts.available, memory_available(os, folders));
  const auto file_system = os.statfs(directory);
  if (!file_system) return fail_errno(file_system.error().number, "looking at '" + directory + "'");
  // A tmpfs mounted with size=0 has no limit of its own.
  facts.file_system_free = file_system->f_blocks == 0
                               ? facts.available
                               : file_system->f_bavail * static_cast<std::uint64_t>(file_system->f_bsize);
  const GroupMemory group = memory_left(os, control_groups(os, folders, "memory"));
  facts.cgroup_left = group.left;
  facts.cgroup_known = group.is_known;
  return facts;
}

std::uint64_t default_limit(const MemoryFacts& facts, std::uint64_t held) noexcept {
  std::uint64_t limit = std::min(facts.available / 10 * 7, facts.file_system_free / 10 * 9);
  if (facts.cgroup_left) {
    limit = std::min(limit, *facts.cgroup_left > kCgroupReserve ? *facts.cgroup_left - kCgroupReserve : 0);
  }
  return limit + held;
}

Result<void> Headroom::check(std::uint64_t bytes) const {
  const auto refuse = [&](std::uint64_t left, const std::string& where) {
    return fail(ErrorCode::kResourceExhausted,
                where + " has " + format_size(left) + " of memory left, and " + format_size(reserve_) +
                    " are kept free: unload a model or end other programs, or lower --memory-reserve",
                {{"needed", bytes}, {"available", left}, {"memory_reserve", reserve_}});
  };
  const auto available = memory_available(*os_, folders_);
  if (available && *available < reserve_ + bytes) return refuse(*available, "the machine");
  const auto cgroup = memory_left(*os_, groups_).left;
  if (cgroup && *cgroup < reserve_ + bytes) return refuse(*cgroup, "the broker's control group");
  return {};
}

}  // namespace modelbroker
