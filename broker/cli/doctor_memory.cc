#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdio>
#include <fstream>
#include <sstream>

#include "broker/base/sizes.h"
#include "broker/cli/doctor_checks.h"
#include "broker/ram/memory_facts.h"
#include "broker/ram/room.h"
#include "shm/kernel.h"
#include "shm/mapping.h"
#include "shm/os_features.h"

namespace modelbroker::cli {
namespace {

constexpr std::uint64_t kProbe = 4ULL << 20;

// ---- the RAM directory

Check directory_check(Os& os, const Config& config) {
  Check check{"ram_directory", Verdict::kOk, "'" + config.ram_directory + "' "};
  const auto found = os.statfs(config.ram_directory);
  if (!found) {
    check.verdict = Verdict::kProblem;
    check.found += error_from_errno(found.error().number, "cannot be read").message;
    check.cost = "no broker can start";
    check.remedy = "choose an existing tmpfs with --ram-directory";
    return check;
  }
  const bool tmpfs = found->f_type == TMPFS_MAGIC;
  check.found += tmpfs ? "is on tmpfs" : "is not on tmpfs";
  if (!tmpfs) {
    check.verdict = config.any_file_system ? Verdict::kNote : Verdict::kProblem;
    check.cost = "blocks are files on a disk";
    check.remedy = "choose /dev/shm or another tmpfs with --ram-directory, or allow it with --any-file-system";
  }
  if (::access(config.ram_directory.c_str(), R_OK | W_OK | X_OK) != 0) {
    check.verdict = Verdict::kProblem;
    check.found += ", and this user may not write to it";
    check.cost = "no broker of this user can start";
    check.remedy = "make it writable (mode 1777), or choose another with --ram-directory";
  }
  return check;
}

Check size_check(Os& os, const Config& config) {
  Check check{"ram_directory_size", Verdict::kOk, ""};
  const auto found = os.statfs(config.ram_directory);
  const auto total = total_room(os, config.ram_directory);
  if (!found || !total) {
    return {"ram_directory_size", Verdict::kProblem, "cannot be read", "no broker can start",
            "choose an existing tmpfs with --ram-directory"};
  }
  if (!*total) {
    check.found = "no limit of its own";
    return check;
  }
  const std::uint64_t free = found->f_bavail * static_cast<std::uint64_t>(found->f_bsize);
  check.found = format_size(free) + " free of " + format_size(**total);
  if (const auto room = check_room(os, config.ram_directory, config.ram_budget); !room) {
    check.verdict = Verdict::kProblem;
    check.cost = "a broker refuses to start with so little";
    check.remedy = room_advice();
  } else if (free < **total / 10) {
    check.verdict = Verdict::kNote;
    check.cost = "loads are refused when it is full";
    check.remedy = "see what fills it: ls -la " + config.ram_directory;
  }
  return check;
}

// ---- huge pages

// How much of the mapping at `address` the kernel maps by 2 MiB pages, from its own account.
std::optional<std::uint64_t> huge_bytes_at(const void* address) {
  std::ifstream maps("/proc/self/smaps");
  bool here = false;
  for (std::string line; std::getline(maps, line);) {
    std::uintptr_t begin = 0, end = 0;
    std::uint64_t kilobytes = 0;
    if (std::sscanf(line.c_str(), "%" SCNxPTR "-%" SCNxPTR " ", &begin, &end) == 2) {
      here = begin == reinterpret_cast<std::uintptr_t>(address);
    } else if (here &&
               (std::sscanf(line.c_str(), "ShmemPmdMapped: %" SCNu64, &kilobytes) == 1 ||
                std::sscanf(line.c_str(), "FilePmdMapped: %" SCNu64, &kilobytes) == 1) &&
               kilobytes > 0) {
      return kilobytes * 1024;
    }
  }
  return maps.eof() ? std::optional<std::uint64_t>(0) : std::nullopt;
}

// Makes two 2 MiB pages in the directory as a block would, and asks the kernel what it got.
Result<std::uint64_t> make_huge_pages(Os& os, const std::string& directory) {
  const auto file = make_nameless_file(directory);
  if (!file) return fail_errno(file.error().number, "making a file in '" + directory + "'");
  if (const auto grown = os.ftruncate(file->get(), kProbe); !grown) {
    return fail_errno(grown.error().number, "growing a file in '" + directory + "'");
  }
  MODELBROKER_ASSIGN(const Mapping mapping, Mapping::map(os, file->get(), kProbe, Mapping::Kind::kShared));
  std::byte* const begin = mapping.bytes().data();
  for (std::uint64_t at = 0; at < kProbe; at += 2U << 20) {
    if (const auto made = os.advise(begin + at, 4096, kMadvPopulateWrite); !made) {
      return fail_errno(made.error().number, "making pages in '" + directory + "'");
    }
    if (const auto whole = os.advise(begin + at, 2U << 20, kMadvCollapse); !whole) return 0;
  }
  const auto huge = huge_bytes_at(begin);
  if (!huge) return fail(ErrorCode::kUnavailable, "/proc/self/smaps cannot be read");
  return *huge;
}

Check huge_check(Os& os, const Config& config) {
  Check check{"huge_pages", Verdict::kOk, ""};
  const auto made = make_huge_pages(os, config.ram_directory);
  if (made && *made == kProbe) {
    check.found = "made in '" + config.ram_directory + "': 2 of 2";
    if (config.huge_pages && os.features().collapse) return check;
    check.verdict = Verdict::kNote;
    check.found += ", but switched off";
    check.remedy = "leave --huge-pages at auto and --disable-features empty";
  } else {
    check.verdict = Verdict::kNote;
    check.found =
        made ? std::to_string(*made >> 21U) + " of 2 made in '" + config.ram_directory + "'" : made.error().message;
    check.remedy =
        "Linux 6.1 or newer with CONFIG_TRANSPARENT_HUGEPAGE, and memory that is not fragmented "
        "(echo 1 > /proc/sys/vm/compact_memory)";
  }
  check.cost =
      "4 KiB pages: a block is made several times slower, and touching it for the first time takes "
      "about 30 times as long in every worker";
  return check;
}

// ---- memory

Check memory_check(Os& os, const Config& config, const Roots& roots) {
  const auto facts = read_memory_facts(os, config.ram_directory, {roots.proc, roots.cgroup});
  if (!facts) {
    return {"memory", config.ram_budget ? Verdict::kNote : Verdict::kProblem, facts.error().message,
            "the default budget cannot be computed", "give --ram-budget"};
  }
  const std::uint64_t limit = config.ram_budget.value_or(default_limit(*facts, 0));
  Check check{"memory", Verdict::kOk,
              format_size(facts->available) + " available; a broker that starts now holds up to " + format_size(limit)};
  if (config.ram_budget && limit > facts->available) {
    check.verdict = Verdict::kNote;
    check.cost = "the budget is more than what is available now: loads beyond it are refused, or swap";
    check.remedy = "a smaller --ram-budget";
  } else if (limit < kSmallRoom) {
    check.verdict = Verdict::kNote;
    check.cost = "hardly any model fits";
    check.remedy = "free memory, or give --ram-budget";
  }
  return check;
}

Check cgroup_check(Os& os, const Config& config, const Roots& roots) {
  const auto facts = read_memory_facts(os, config.ram_directory, {roots.proc, roots.cgroup});
  const std::string raise =
      "raise memory.max (version 1: memory.limit_in_bytes; docker run --memory, MemoryMax= of the unit)";
  if (!facts || (!facts->cgroup_known && !facts->cgroup_left)) {
    return {"cgroup_memory", Verdict::kNote, "not known: the limits of this process's control group cannot be read",
            "a broker may take more than its group allows, and is killed then",
            "mount the control groups ('" + roots.cgroup + "') where the broker runs, or give --ram-budget"};
  }
  if (!facts->cgroup_left) return {"cgroup_memory", Verdict::kOk, "no limit found"};
  Check check{"cgroup_memory", Verdict::kOk, format_size(*facts->cgroup_left) + " left to this control group"};
  if (!facts->cgroup_known) check.found += "; not every limit could be read";
  if (*facts->cgroup_left < kSmallRoom + config.memory_reserve) {
    check.verdict = Verdict::kProblem;
    check.cost = "blocks count against the group that made them: hardly any model fits";
    check.remedy = raise;
  } else {
    check.verdict = Verdict::kNote;
    check.cost =
        "blocks count against the group that made them, and memory is reclaimed or the group killed at its limit";
    check.remedy = raise + " if that is too little";
  }
  return check;
}

// ---- swap

// The options of the mount that holds `path`, the last one over it.
std::string mount_options(const std::string& mountinfo, const std::string& path) {
  std::string options, best;
  std::istringstream lines(mountinfo);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string id, parent, device, root, point, own;
    words >> id >> parent >> device >> root >> point >> own;
    const bool holds = path == point || point == "/" || path.starts_with(point + "/");
    if (!holds || point.size() < best.size()) continue;
    best = point;
    options = line.substr(line.find(own));
  }
  return options;
}

Check swap_check(Os& os, const Config& config, const Roots& roots) {
  const auto swaps = os.read_text(roots.proc + "/swaps");
  const auto mounts = os.read_text(roots.proc + "/self/mountinfo");
  const std::string heading = "Filename";
  std::size_t areas = 0;
  std::istringstream lines(swaps.value_or(""));
  for (std::string line; std::getline(lines, line);) areas += line.empty() || line.starts_with(heading) ? 0U : 1U;
  if (areas == 0) return {"swap", Verdict::kOk, swaps ? "off" : "none seen"};
  if (mount_options(mounts.value_or(""), config.ram_directory).find("noswap") != std::string::npos) {
    return {"swap", Verdict::kOk, "on, and '" + config.ram_directory + "' is mounted noswap"};
  }
  return {"swap", Verdict::kNote, "on, also for '" + config.ram_directory + "'",
          "unused weights may be swapped out, and the next use reads them from disk",
          "mount a tmpfs with noswap (Linux 6.4) and name it with --ram-directory, or switch swap off"};
}

}  // namespace

std::string_view to_string(Verdict verdict) noexcept {
  switch (verdict) {
    case Verdict::kOk:
      return "ok";
    case Verdict::kNote:
      return "note";
    case Verdict::kProblem:
      break;
  }
  return "problem";
}

std::vector<Check> check_memory(Os& os, const Config& config, const Roots& roots) {
  return {directory_check(os, config),     size_check(os, config),          huge_check(os, config),
          memory_check(os, config, roots), cgroup_check(os, config, roots), swap_check(os, config, roots)};
}

}  // namespace modelbroker::cli
