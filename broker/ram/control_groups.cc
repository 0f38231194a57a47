#include "broker/ram/control_groups.h"

#include <algorithm>
#include <charconv>
#include <sstream>
#include <thread>

namespace modelbroker {
namespace {

// Version 1 says "no limit" by a number: the largest multiple of the page size.
constexpr std::uint64_t kNoLimit = 1ULL << 62;

std::optional<std::uint64_t> number(std::string_view text) {
  text.remove_prefix(std::min(text.find_first_not_of(" \t"), text.size()));
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() ? std::optional(value) : std::nullopt;
}

// The number behind a word at the beginning of a line.
std::optional<std::uint64_t> number_of(const std::string& text, std::string_view word) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with(word) && line.size() > word.size() && line[word.size()] == ' ') {
      return number(std::string_view(line).substr(word.size()));
    }
  }
  return std::nullopt;
}

std::optional<std::uint64_t> number_in(Os& os, const std::string& file) {
  const auto text = os.read_text(file);
  return text ? number(*text) : std::nullopt;
}

bool lists(std::string_view words, std::string_view word) {
  while (!words.empty()) {
    const auto comma = std::min(words.find(','), words.size());
    if (words.substr(0, comma) == word) return true;
    words.remove_prefix(std::min(comma + 1, words.size()));
  }
  return false;
}

// The kernel writes spaces and the like in paths as "\040".
std::string unescaped(const std::string& text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    unsigned value = 0;
    const bool is_escape =
        text[i] == '\\' && i + 3 < text.size() &&
        std::from_chars(text.data() + i + 1, text.data() + i + 4, value, 8).ptr == text.data() + i + 4 && value < 256;
    out += is_escape ? static_cast<char>(value) : text[i];
    if (is_escape) i += 3;
  }
  return out;
}

// Where a hierarchy, or the part of it below `root`, is mounted.
struct Top {
  std::string root = "/";
  std::string folder;
};

std::vector<Top> mounted(const std::string& mountinfo, std::string_view controller, bool is_version_1) {
  std::vector<Top> tops;
  std::istringstream lines(mountinfo);
  for (std::string line; std::getline(lines, line);) {
    const auto bar = line.find(" - ");
    if (bar == std::string::npos) continue;
    std::istringstream before(line.substr(0, bar));
    std::istringstream after(line.substr(bar + 3));
    std::string id, parent, device, root, point, type, source, options;
    before >> id >> parent >> device >> root >> point;
    after >> type >> source >> options;
    const bool is_it = is_version_1 ? type == "cgroup" && lists(options, controller) : type == "cgroup2";
    if (is_it) tops.push_back({unescaped(root), unescaped(point)});
  }
  return tops;
}

// A group's path below such a top; the top itself where the group lies outside of it.
std::string below(const Top& top, const std::string& path) {
  std::string rest = path;
  if (top.root != "/") {
    const bool is_below = path.starts_with(top.root + "/");
    rest = is_below ? path.substr(top.root.size()) : "";
  }
  // Of another namespace's group the kernel says "/../...".
  return rest == "/" || rest.starts_with("/..") ? "" : rest;
}

GroupChain chain_of(const Top& top, const std::string& path, bool is_version_1) {
  GroupChain chain{is_version_1, {}};
  std::string rest = below(top, path);
  while (!rest.empty()) {
    chain.folders.push_back(top.folder + rest);
    rest = rest.substr(0, rest.rfind('/'));
  }
  chain.folders.push_back(top.folder);
  return chain;
}

// Page cache counts as used and goes when memory is wanted; a tmpfs is not among it.
std::uint64_t reclaimable(Os& os, const std::string& folder, bool is_version_1) {
  const auto stat = os.read_text(folder + "/memory.stat");
  if (!stat) return 0;
  const std::string whole = is_version_1 ? "total_" : "";  // with the groups below
  return number_of(*stat, whole + "inactive_file").value_or(0) + number_of(*stat, whole + "active_file").value_or(0);
}

struct Level {
  bool has_file = false;              // the limit's
  bool is_known = true;               // it, and what it leaves
  std::optional<std::uint64_t> left;  // where there is a limit
};

Level memory_of(Os& os, const std::string& folder, bool is_version_1) {
  Level level;
  const auto most = os.read_text(folder + (is_version_1 ? "/memory.limit_in_bytes" : "/memory.max"));
  if (!most) return level;
  level.has_file = true;
  const auto limit = number(*most);  // "max" is no number: no limit here
  if (!limit || *limit >= kNoLimit) return level;
  const auto used = number_in(os, folder + (is_version_1 ? "/memory.usage_in_bytes" : "/memory.current"));
  level.is_known = used.has_value();
  if (!used) return level;
  const std::uint64_t kept = *used - std::min(*used, reclaimable(os, folder, is_version_1));
  level.left = *limit > kept ? *limit - kept : 0;
  return level;
}

// Processors that a group's quota allows.
std::optional<unsigned> cpus_of(Os& os, const std::string& folder, bool is_version_1) {
  std::optional<std::uint64_t> quota, period;
  if (is_version_1) {
    quota = number_in(os, folder + "/cpu.cfs_quota_us");  // -1 is no number here
    period = number_in(os, folder + "/cpu.cfs_period_us");
  } else if (const auto text = os.read_text(folder + "/cpu.max")) {
    quota = number(*text);  // nor is "max"
    const auto space = text->find(' ');
    if (space != std::string::npos) period = number(std::string_view(*text).substr(space));
  }
  if (!quota || !period || *period == 0) return std::nullopt;
  return static_cast<unsigned>(std::clamp<std::uint64_t>((*quota + *period - 1) / *period, 1, 1U << 16U));
}

// How many of a list like "0-3,8".
unsigned count_of(std::string_view list) {
  std::uint64_t count = 0;
  while (!list.empty()) {
    const auto comma = std::min(list.find(','), list.size());
    const std::string_view part = list.substr(0, comma);
    const auto dash = part.find('-');
    const auto first = number(part);
    const auto last = dash == std::string_view::npos ? first : number(part.substr(dash + 1));
    if (first && last && *last >= *first) count += *last - *first + 1;
    list.remove_prefix(std::min(comma + 1, list.size()));
  }
  return static_cast<unsigned>(std::min<std::uint64_t>(count, 1U << 16U));
}

unsigned affinity(Os& os, const KernelFolders& folders) {
  constexpr std::string_view kWord = "Cpus_allowed_list:";
  const auto status = os.read_text(folders.proc + "/self/status");
  const auto at = status ? status->find(kWord) : std::string::npos;
  if (at == std::string::npos) return std::max(1U, std::thread::hardware_concurrency());
  std::string_view list = std::string_view(*status).substr(at + kWord.size());
  return std::max(1U, count_of(list.substr(0, list.find('\n'))));
}

}  // namespace

ControlGroups control_groups(Os& os, const KernelFolders& folders, std::string_view controller) {
  ControlGroups groups;
  const auto own = os.read_text(folders.proc + "/self/cgroup");
  if (!own) return groups;
  groups.is_listed = true;
  const std::string mountinfo = os.read_text(folders.proc + "/self/mountinfo").value_or("");
  std::istringstream lines(*own);
  for (std::string line; std::getline(lines, line);) {  // "4:cpu,cpuacct:/user" or "0::/user"
    const auto first = line.find(':');
    const auto second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos || line.size() <= second + 1 || line[second + 1] != '/') continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool is_version_1 = !controllers.empty();
    if (is_version_1 && !lists(controllers, controller)) continue;
    groups.is_under_version_1 = groups.is_under_version_1 || is_version_1;
    std::vector<Top> tops = mounted(mountinfo, controller, is_version_1);
    // Where it usually lies, in case that the list of mounts says nothing.
    const std::string usual = folders.cgroup + (is_version_1 ? "/" + std::string(controller) : "");
    if (std::ranges::find(tops, usual, &Top::folder) == tops.end()) tops.push_back({.folder = usual});
    for (const Top& top : tops) groups.chains.push_back(chain_of(top, line.substr(second + 1), is_version_1));
  }
  return groups;
}

GroupMemory memory_left(Os& os, const ControlGroups& groups) {
  GroupMemory memory;
  bool has_file = false, is_whole = true;
  for (const GroupChain& chain : groups.chains) {
    for (const std::string& folder : chain.folders) {
      const Level level = memory_of(os, folder, chain.is_version_1);
      has_file = has_file || (level.has_file && chain.is_version_1 == groups.is_under_version_1);
      is_whole = is_whole && level.is_known;
      if (level.left) memory.left = std::min(memory.left.value_or(*level.left), *level.left);
    }
  }
  // Version 2 has no limit's file at its top, nor where nobody switched the controller on.
  const bool is_mounted = std::ranges::any_of(groups.chains, [&](const GroupChain& chain) {
    return !chain.is_version_1 && os.read_text(chain.folders.back() + "/cgroup.controllers").has_value();
  });
  const bool is_found = has_file || (!groups.is_under_version_1 && is_mounted);
  memory.is_known = groups.is_listed && is_whole && (is_found || groups.chains.empty());
  return memory;
}

unsigned usable_cpus(Os& os, const KernelFolders& folders) {
  unsigned cpus = affinity(os, folders);
  for (const GroupChain& chain : control_groups(os, folders, "cpu").chains) {
    for (const std::string& folder : chain.folders) {
      if (const auto quota = cpus_of(os, folder, chain.is_version_1)) cpus = std::min(cpus, *quota);
    }
  }
  return cpus;
}

}  // namespace modelbroker
