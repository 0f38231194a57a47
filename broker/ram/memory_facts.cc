#include "broker/ram/memory_facts.h"

#include <algorithm>
#include <charconv>
#include <string_view>

#include "broker/ram/sizes.h"

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

std::uint64_t reclaimable(Os& os, const std::string& folder) {
  const auto stat = os.read_text(folder + "/memory.stat");
  if (!stat) return 0;
  return number_after(*stat, "inactive_file ").value_or(0) + number_after(*stat, "\nactive_file ").value_or(0);
}

// The tightest memory.max of our cgroup (v2) and its parents; nothing where there is no limit.
std::optional<std::uint64_t> cgroup_left(Os& os, const KernelFolders& folders) {
  const auto own = os.read_text(folders.proc + "/self/cgroup");
  if (!own) return std::nullopt;
  const auto at = own->find("0::");
  if (at == std::string::npos) return std::nullopt;
  std::string path = own->substr(at + 3);
  path = path.substr(0, path.find('\n'));
  if (!path.starts_with('/')) return std::nullopt;  // nothing to walk up
  std::optional<std::uint64_t> left;
  while (true) {
    const std::string folder = folders.cgroup + (path == "/" ? "" : path);
    const auto most = os.read_text(folder + "/memory.max");
    const auto current = os.read_text(folder + "/memory.current");
    if (most && current) {
      const auto limit = number_after(*most, "");  // "max" is no number: no limit here
      const auto used = number_after(*current, "");
      if (limit && used) {
        // Page cache counts as used and goes when memory is wanted; a tmpfs is not among it.
        const std::uint64_t kept = *used - std::min(*used, reclaimable(os, folder));
        const std::uint64_t rest = *limit > kept ? *limit - kept : 0;
        left = std::min(left.value_or(rest), rest);
      }
    }
    if (path.empty() || path == "/") return left;
    path = path.substr(0, path.rfind('/'));
  }
}

}  // namespace

namespace {

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
  facts.cgroup_left = cgroup_left(os, folders);
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
  const auto cgroup = cgroup_left(*os_, folders_);
  if (cgroup && *cgroup < reserve_ + bytes) return refuse(*cgroup, "the broker's control group");
  return {};
}

}  // namespace modelbroker
