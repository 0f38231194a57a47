#include "broker/cli/bench/tidier.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <filesystem>
#include <memory>
#include <optional>
#include <set>
#include <string_view>
#include <system_error>
#include <thread>

#include "broker/cli/clean_instance.h"

namespace modelbroker::cli {
namespace {

constexpr std::string_view kInstance = "bench-";
constexpr std::chrono::milliseconds kLookAgain{20};
constexpr int kLooks = 500;  // ten seconds: a killed broker frees its memory before its lock

// Of what bench has open nothing may stay open by us: whoever reads its output waits for the end.
void keep_only(int pipe) {
  const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  for (const int standard : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) ::dup2(null, standard);
  std::set<int> open;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd", ignored)) {
    open.insert(std::stoi(entry.path().filename().string()));
  }
  for (const int number : open) {
    if (number > STDERR_FILENO && number != pipe) ::close(number);
  }
}

bool tidy(Os& os, const std::vector<std::string>& folders, const std::string& instance) {
  bool done = true;
  for (const std::string& folder : folders) {
    std::error_code error;
    std::filesystem::remove_all(folder, error);
    done = done && !error;
  }
  return clean_instance(os, kBenchRam, instance, /*with_lock=*/true).has_value() && done;
}

[[noreturn]] void wait_and_tidy(int pipe, const std::vector<std::string>& folders, const std::string& instance) {
  ::setsid();
  keep_only(pipe);
  char byte = 0;
  while (::read(pipe, &byte, 1) < 0 && errno == EINTR) {
  }
  const std::unique_ptr<Os> os = make_plain_os();
  for (int look = 0; look < kLooks && !tidy(*os, folders, instance); ++look) std::this_thread::sleep_for(kLookAgain);
  ::_exit(0);
}

// "modelbroker.<uid>.bench-<pid>.<rest>": the pid.
std::optional<pid_t> bench_of(std::string_view name, std::string_view prefix) {
  if (!name.starts_with(prefix)) return std::nullopt;
  name.remove_prefix(prefix.size());
  pid_t pid = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), pid);
  if (error != std::errc() || end == name.data() + name.size() || *end != '.' || pid <= 0) return std::nullopt;
  return pid;
}

}  // namespace

std::string bench_instance(pid_t bench) { return std::string(kInstance) + std::to_string(bench); }

Result<Tidier> Tidier::start(const std::vector<std::string>& folders) {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) return fail_errno(errno, "starting the process that tidies up");
  const Fd theirs(ends[0]);
  Fd ours(ends[1]);
  const std::string instance = bench_instance(::getpid());
  const pid_t pid = ::fork();
  if (pid < 0) return fail_errno(errno, "starting the process that tidies up");
  if (pid == 0) wait_and_tidy(theirs.get(), folders, instance);
  return Tidier(pid, std::move(ours));
}

Tidier::~Tidier() {
  if (pid_ <= 0) return;
  alive_.reset();
  while (::waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
  }
}

void tidy_up_after_dead_benches(Os& os) {
  const auto names = os.list_directory(kBenchRam);
  if (!names) return;
  const std::string prefix = "modelbroker." + std::to_string(os.uid()) + "." + std::string(kInstance);
  std::set<pid_t> benches;
  for (const std::string& name : *names) {
    if (const auto pid = bench_of(name, prefix)) benches.insert(*pid);
  }
  for (const pid_t pid : benches) {
    // One of another pid namespace looks dead: its broker's lock keeps us out.
    if (::kill(pid, 0) == 0 || errno != ESRCH) continue;
    (void)clean_instance(os, kBenchRam, bench_instance(pid), /*with_lock=*/true);
  }
}

}  // namespace modelbroker::cli
