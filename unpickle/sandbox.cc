#include "unpickle/sandbox.h"

#include <linux/close_range.h>
#include <seccomp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>

namespace modelbroker::unpickle {
namespace {

constexpr rlim_t kMaxAddressSpace = rlim_t{1} << 30U;
constexpr rlim_t kMaxProcessorSeconds = 30;

// What reading, answering, memory and the end need.
constexpr auto kAllowedCalls = std::to_array<int>(
    {SCMP_SYS(read), SCMP_SYS(pread64), SCMP_SYS(write), SCMP_SYS(exit), SCMP_SYS(exit_group), SCMP_SYS(munmap),
     SCMP_SYS(mremap), SCMP_SYS(brk), SCMP_SYS(madvise), SCMP_SYS(futex), SCMP_SYS(rt_sigreturn)});

Result<void> close_others(int file, int answer) {
  const auto [low, high] = std::minmax(file, answer);
  const auto close_from = [](int first, int last) {
    return first > last || ::close_range(static_cast<unsigned>(first), static_cast<unsigned>(last), 0) == 0;
  };
  const bool below = close_from(0, low - 1) && close_from(low + 1, high - 1);
  if (below && ::close_range(static_cast<unsigned>(high) + 1, ~0U, 0) == 0) return {};
  // A kernel without close_range.
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return fail_errno(errno, "asking for the limit of open files");
  for (int fd = 0; std::cmp_less(fd, limit.rlim_cur); ++fd) {
    if (fd != file && fd != answer) ::close(fd);
  }
  return {};
}

Result<void> limit_to(__rlimit_resource_t resource, rlim_t most) {
  const rlimit limit{most, most};
  if (::setrlimit(resource, &limit) == 0) return {};
  return fail_errno(errno, "limiting the process that reads the file");
}

Result<void> limit_resources(int answer) {
  struct stat facts {};
  // The signal of a full file would end a write of the answer to one: whoever sends it there by hand.
  const bool to_file = ::fstat(answer, &facts) == 0 && S_ISREG(facts.st_mode);
  if (!to_file) MODELBROKER_TRY(limit_to(RLIMIT_FSIZE, 0));
  if (kFiltered) MODELBROKER_TRY(limit_to(RLIMIT_AS, kMaxAddressSpace));
  MODELBROKER_TRY(limit_to(RLIMIT_CPU, kMaxProcessorSeconds));
  MODELBROKER_TRY(limit_to(RLIMIT_NPROC, 0));
  MODELBROKER_TRY(limit_to(RLIMIT_CORE, 0));
  return limit_to(RLIMIT_NOFILE, 0);
}

Result<void> filter_calls() {
  const auto refused = [](int error_number) {
    return fail(ErrorCode::kFailedPrecondition,
                "the kernel refuses the system call filter (seccomp) under which PyTorch files are read (error " +
                    std::to_string(error_number) +
                    "): allow it, convert the file to safetensors, or set [formats] sandbox = \"off\"");
  };
  const std::unique_ptr<void, decltype(&::seccomp_release)> filter(::seccomp_init(SCMP_ACT_KILL_PROCESS),
                                                                   &::seccomp_release);
  if (!filter) return refused(ENOMEM);
  int failed = ::seccomp_attr_set(filter.get(), SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
  for (const int call : kAllowedCalls) {
    if (failed == 0) failed = ::seccomp_rule_add_exact(filter.get(), SCMP_ACT_ALLOW, call, 0);
  }
  // Memory of its own that is never code.
  const std::array<scmp_arg_cmp, 2> anonymous{
      scmp_arg_cmp{2, SCMP_CMP_MASKED_EQ, PROT_EXEC, 0},
      scmp_arg_cmp{3, SCMP_CMP_MASKED_EQ, MAP_ANONYMOUS, MAP_ANONYMOUS},
  };
  if (failed == 0) {
    failed = ::seccomp_rule_add_exact_array(filter.get(), SCMP_ACT_ALLOW, SCMP_SYS(mmap), anonymous.size(),
                                            anonymous.data());
  }
  if (failed == 0) failed = ::seccomp_load(filter.get());  // sets no_new_privs
  if (failed != 0) return refused(-failed);
  return {};
}

}  // namespace

Result<void> enter_sandbox(int file, int answer) {
  if (::prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) return fail_errno(errno, "binding the process to its parent");
  MODELBROKER_TRY(close_others(file, answer));
  if (::clearenv() != 0) return fail(ErrorCode::kInternal, "the environment could not be emptied");
  if (::prctl(PR_SET_DUMPABLE, 0) != 0) return fail_errno(errno, "making the process not dumpable");
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return fail_errno(errno, "giving up new privileges");
  MODELBROKER_TRY(limit_resources(answer));
  return kFiltered ? filter_calls() : Result<void>{};
}

}  // namespace modelbroker::unpickle
