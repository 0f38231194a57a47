#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <sstream>

#include "broker/base/sizes.h"
#include "broker/cli/doctor_checks.h"
#include "broker/ram/room.h"
#include "shm/limits.h"
#include "shm/os_features.h"
#include "wire/endpoint.h"

namespace modelbroker::cli {
namespace {

// ---- the kernel

Check kernel_check() {
  utsname name{};
  ::uname(&name);
  return {"kernel", Verdict::kOk, std::string(name.sysname) + " " + name.release + " on " + name.machine};
}

struct Second {
  std::string_view feature, found, cost, remedy;
};
constexpr std::array<Second, 10> kSeconds{{
    {"collapse", "MADV_COLLAPSE gives 2 MiB pages", "4 KiB pages", "Linux 6.1 or newer, and a tmpfs"},
    {"populate_write", "MADV_POPULATE_WRITE makes pages", "pages are reserved by posix_fallocate, and none are huge",
     "Linux 5.14 or newer"},
    {"rename_noreplace", "renameat2 refuses to replace", "none: blocks are published by link and unlink",
     "Linux 3.15 or newer, and a tmpfs"},
    {"write_lease", "F_SETLEASE tells whether any process maps a block",
     "only the broker's own leases count: memory that a program maps beyond its lease counts as free",
     "a real kernel (gVisor does not have it), and a RAM directory of the broker's own user"},
    {"pidfd", "pidfd_open tells when a process dies",
     "the death of a ZeroMQ-only worker is noticed by its silence (--hung)",
     "Linux 5.3 or newer, and a seccomp profile that allows pidfd_open"},
    {"peer_pidfd", "SO_PEERPIDFD works across pid namespaces",
     "workers in other pid namespaces are known by their connection alone", "Linux 6.5 or newer"},
    {"cachestat", "cachestat tells what the page cache holds", "mincore is used instead: a little slower",
     "Linux 6.5 or newer, and a seccomp profile that allows cachestat"},
    {"direct_io", "O_DIRECT may be tried", "cold files go through the page cache",
     "a RAM directory that this user may write to"},
    {"openat2", "openat2 opens files below model folders", "they are opened folder by folder: a little slower",
     "Linux 5.6 or newer, and a seccomp profile that allows openat2"},
    {"peer_groups", "SO_PEERGROUPS tells a peer's groups", "a member of the group must have it as its first group",
     "Linux 4.13 or newer"},
}};

std::vector<Check> feature_checks(Os& os, const Config& config) {
  std::vector<Check> checks;
  const OsFeatures there = probe_features({.directory = config.ram_directory, .disabled = ""});
  for (const auto& [name, member] : kFeatureNames) {
    const auto* const second = std::ranges::find(kSeconds, name, &Second::feature);
    Check check{std::string(name), Verdict::kOk, std::string(second->found)};
    if (!(os.features().*member)) {
      check.verdict = Verdict::kNote;
      check.found = there.*member ? "supported, but switched off by --disable-features" : "not supported here";
      check.cost = second->cost;
      check.remedy = there.*member ? "leave --disable-features empty" : second->remedy;
    }
    checks.push_back(std::move(check));
  }
  return checks;
}

// ---- limits

std::string limit_text(rlim_t limit) { return limit == RLIM_INFINITY ? "unlimited" : std::to_string(limit); }

Check descriptors_check() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return {"descriptors", Verdict::kNote, "RLIMIT_NOFILE cannot be read"};
  Check check{"descriptors", Verdict::kOk,
              "up to " + limit_text(limit.rlim_max) + " (a broker raises its limit to that)"};
  if (limit.rlim_max < 4096) {
    check.verdict = limit.rlim_max < 256 ? Verdict::kProblem : Verdict::kNote;
    check.cost = "a broker needs one per model and two per worker; without any left it refuses new workers";
    check.remedy = "ulimit -Hn 65536, LimitNOFILE= of the unit, docker run --ulimit nofile=65536";
  }
  return check;
}

Check memlock_check() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_MEMLOCK, &limit) != 0)
    return {"locked_memory", Verdict::kNote, "RLIMIT_MEMLOCK cannot be read"};
  return {"locked_memory", Verdict::kOk, limit_text(limit.rlim_max) + " bytes (this version locks none)"};
}

// A block is one file.
Check file_size_check() {
  const auto limit = file_size_limit();
  if (!limit) return {"file_size", Verdict::kOk, "unlimited"};
  Check check{"file_size", Verdict::kNote, format_size(*limit) + " (ulimit -f)"};
  check.cost = "a model whose block is larger is refused";
  if (*limit < kSmallFileLimit) {
    check.verdict = Verdict::kProblem;
    check.cost = "a broker refuses to start with so little, and what it probes of the kernel cannot be told";
  }
  check.remedy = file_size_advice();
  return check;
}

// An instance is really made; how many watches it may have only the kernel's file tells.
Check inotify_check(Os& os, const Roots& roots) {
  const std::string cost = "draining blocks are checked by a timer: their memory counts as free later";
  const auto made = os.inotify_create();
  if (!made) {
    return {"inotify", Verdict::kNote, error_from_errno(made.error().number, "making an instance").message, cost,
            "sysctl fs.inotify.max_user_instances=1024"};
  }
  const std::string most = os.read_text(roots.proc + "/sys/fs/inotify/max_user_watches").value_or("");
  std::uint64_t watches = 0;
  std::istringstream(most) >> watches;
  if (watches == 0) return {"inotify", Verdict::kOk, "works; its limit cannot be read"};
  Check check{"inotify", Verdict::kOk, std::to_string(watches) + " watches"};
  if (watches < 1024) {
    check.verdict = Verdict::kNote;
    check.cost = cost;
    check.remedy = "sysctl fs.inotify.max_user_watches=65536";
  }
  return check;
}

// ---- namespaces

// The first pid namespace has a number of its own (PROC_PID_INIT_INO of linux/proc_ns.h).
Check pid_namespace_check(Os& os, const Roots& roots) {
  std::array<char, 64> target{};
  const auto size = ::readlink((roots.proc + "/self/ns/pid").c_str(), target.data(), target.size() - 1);
  const std::string_view link(target.data(), size > 0 ? static_cast<std::size_t>(size) : 0);
  if (link.empty()) return {"pid_namespace", Verdict::kNote, "not known: /proc is not mounted as usual"};
  if (link == "pid:[4026531836]")
    return {"pid_namespace", Verdict::kOk, "the machine's own: every worker's pid is visible"};
  Check check{"pid_namespace", Verdict::kOk, "a container's own"};
  if (os.features().peer_pidfd) {
    check.found += "; workers outside it are known by their pidfd";
    return check;
  }
  check.verdict = Verdict::kNote;
  check.cost = "workers outside it have pid 0 here: they are known by their connection alone";
  check.remedy = "share it (docker run --pid=host), or Linux 6.5 or newer";
  return check;
}

// ---- what may take blocks away

// The value of RemoveIPC= that holds, from the files that systemd-logind reads.
std::string remove_ipc(Os& os, const std::string& etc) {
  std::vector<std::string> files{etc + "/systemd/logind.conf"};
  if (auto extra = os.list_directory(etc + "/systemd/logind.conf.d")) {
    std::ranges::sort(*extra);
    const std::string folder = etc + "/systemd/logind.conf.d/";
    for (const std::string& name : *extra) files.push_back(folder + name);
  }
  std::string value = "yes";  // systemd's default
  for (const std::string& file : files) {
    std::istringstream lines(os.read_text(file).value_or(""));
    for (std::string line; std::getline(lines, line);) {
      if (line.starts_with("RemoveIPC=")) value = line.substr(line.find('=') + 1);
    }
  }
  return value;
}

Check remove_ipc_check(Os& os, const Config& config, const Roots& roots) {
  constexpr uid_t kFirstPerson = 1000;  // login.defs(5): below it are system users, which logind leaves alone
  const std::string name = "remove_ipc";
  if (os.uid() < kFirstPerson) return {name, Verdict::kOk, "a system user's shared memory is left alone"};
  if (!config.ram_directory.starts_with("/dev/shm")) return {name, Verdict::kOk, "concerns /dev/shm alone"};
  if (!os.lstat(roots.etc + "/systemd/logind.conf")) return {name, Verdict::kOk, "no systemd-logind here"};
  const std::string value = remove_ipc(os, roots.etc);
  if (value == "no" || value == "false" || value == "0" || value == "off")
    return {name, Verdict::kOk, "RemoveIPC=" + value};
  return {name, Verdict::kNote, "RemoveIPC=" + value + " in logind.conf",
          "at the end of this user's last login session systemd removes the user's files in /dev/shm: every block",
          "RemoveIPC=no in /etc/systemd/logind.conf, a broker as a system service, or loginctl enable-linger"};
}

// ---- the run directory

Check run_directory_check(Os& os, const Config& config) {
  Check check{"run_directory", Verdict::kOk, "'" + config.run_directory + "'"};
  const auto problem = [&](const std::string& found, const std::string& remedy) {
    check.verdict = Verdict::kProblem;
    check.found += found;
    check.cost = "no broker can start";
    check.remedy = remedy;
    return check;
  };
  if (const auto endpoint = wire::Endpoint::in(config.run_directory); !endpoint) {
    return problem(" is too long for a socket", "choose a shorter --run-directory");
  }
  const auto found = os.lstat(config.run_directory);
  if (found) {
    const bool ours = S_ISDIR(found->st_mode) && found->st_uid == os.uid() && (found->st_mode & 022U) == 0;
    if (ours) return check;
    return problem(" is not a folder that belongs to this user and that others cannot write to",
                   "choose another --run-directory");
  }
  const std::string parent = config.run_directory.substr(0, config.run_directory.rfind('/'));
  if (::access(parent.empty() ? "/" : parent.c_str(), W_OK | X_OK) != 0) {
    return problem(" cannot be made", "make '" + parent + "' writable, or choose another --run-directory");
  }
  check.found += " will be made";
  return check;
}

}  // namespace

std::vector<Check> check_host(Os& os, const Config& config, const Roots& roots) {
  std::vector<Check> checks{kernel_check()};
  std::ranges::move(feature_checks(os, config), std::back_inserter(checks));
  for (Check& check : std::vector<Check>{descriptors_check(), memlock_check(), file_size_check(),
                                         inotify_check(os, roots), pid_namespace_check(os, roots),
                                         remove_ipc_check(os, config, roots), run_directory_check(os, config)}) {
    checks.push_back(std::move(check));
  }
  return checks;
}

}  // namespace modelbroker::cli
