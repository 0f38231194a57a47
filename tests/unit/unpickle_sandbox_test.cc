// The sandbox: every call that is not needed ends the process, as root and as another user.
#include "unpickle/sandbox.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "shm/fd.h"

namespace modelbroker::unpickle {
namespace {

constexpr int kNoSandbox = 99, kCameBack = 98;
constexpr uid_t kOtherUser = 65534;

// How a process ends that enters the sandbox and does this: its wait status.
int status_of(const std::function<int()>& inside, bool as_other_user = false) {
  const pid_t child = ::fork();
  if (child == 0) {
    const int null = ::open("/dev/null", O_RDWR);
    if (as_other_user && (::setgid(kOtherUser) != 0 || ::setuid(kOtherUser) != 0)) ::_exit(kNoSandbox);
    if (null < 0 || !enter_sandbox(null, STDOUT_FILENO)) ::_exit(kNoSandbox);
    ::_exit(inside());
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return status;
}

struct Forbidden {
  const char* what;
  std::function<void()> call;
};

const auto kForbidden = std::vector<Forbidden>{
    {"open", [] { ::open("/etc/passwd", O_RDONLY); }},
    {"creat", [] { ::open("/tmp/x", O_CREAT | O_WRONLY, 0600); }},
    {"unlink", [] { ::unlink("/nowhere"); }},
    {"rename", [] { ::rename("/nowhere", "/nowhere2"); }},
    {"stat", [] { (void)::access("/etc/passwd", R_OK); }},
    {"socket", [] { ::socket(AF_INET, SOCK_STREAM, 0); }},
    {"socketpair", [] { ::syscall(SYS_socketpair, AF_UNIX, SOCK_STREAM, 0, nullptr); }},
    {"pipe", [] { ::syscall(SYS_pipe2, nullptr, 0); }},
    {"fork", [] { ::syscall(SYS_clone, SIGCHLD, nullptr, nullptr, nullptr, 0); }},
    {"execve", [] { ::execl("/bin/true", "true", nullptr); }},
    {"kill", [] { ::kill(::getppid(), 0); }},
    {"ptrace", [] { ::syscall(SYS_ptrace, 0, 0, 0, 0); }},
    {"prctl", [] { ::prctl(PR_SET_DUMPABLE, 1); }},
    {"setrlimit", [] { ::syscall(SYS_prlimit64, 0, 0, nullptr, nullptr); }},
    {"ioctl", [] { ::syscall(SYS_ioctl, 0, 0, nullptr); }},
    {"mprotect", [] { ::syscall(SYS_mprotect, nullptr, 0, PROT_EXEC); }},
    {"executable memory",
     [] { ::syscall(SYS_mmap, nullptr, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); }},
    {"mapped file", [] { ::syscall(SYS_mmap, nullptr, 4096, PROT_READ, MAP_PRIVATE, 0, 0); }},
    {"memfd", [] { ::syscall(SYS_memfd_create, "x", 0); }},
    {"process_vm_writev", [] { ::syscall(SYS_process_vm_writev, 1, nullptr, 0, nullptr, 0, 0); }},
    {"bpf", [] { ::syscall(SYS_bpf, 0, nullptr, 0); }},
    {"io_uring", [] { ::syscall(SYS_io_uring_setup, 1, nullptr); }},
    {"setuid", [] { ::syscall(SYS_setuid, 0); }},
    {"unknown", [] { ::syscall(100000); }},
};

TEST(SandboxTest, EveryForbiddenCallEndsTheProcess) {
  if (!kFiltered) GTEST_SKIP() << "a sanitizer's build runs without the filter";
  for (const bool as_other_user : {false, true}) {
    if (as_other_user && ::geteuid() != 0) continue;  // this is one
    for (const Forbidden& forbidden : kForbidden) {
      const int status = status_of(
          [&] {
            forbidden.call();
            return kCameBack;
          },
          as_other_user);
      EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS) << forbidden.what << ": " << status;
    }
  }
}

TEST(SandboxTest, WhatReadingNeedsStillWorks) {
  std::array<int, 2> pipe{};
  ASSERT_EQ(::pipe(pipe.data()), 0);
  const Fd reading(pipe[0]), writing(pipe[1]);
  const pid_t child = ::fork();
  if (child == 0) {
    const Fd file(::open("/proc/self/exe", O_RDONLY));
    if (!enter_sandbox(file.get(), pipe[1])) ::_exit(kNoSandbox);
    std::array<char, 4> magic{};
    if (::pread(file.get(), magic.data(), magic.size(), 0) != 4) ::_exit(1);
    std::vector<char> memory(300U << 20U);  // by mmap, and back
    memory.clear();
    memory.shrink_to_fit();
    if (::write(pipe[1], magic.data(), magic.size()) != 4) ::_exit(2);
    ::_exit(0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  std::array<char, 4> magic{};
  ASSERT_EQ(::read(pipe[0], magic.data(), magic.size()), 4);
  EXPECT_EQ(std::string(magic.data(), magic.size()),
            "\x7f"
            "ELF");
}

TEST(SandboxTest, MemoryIsLimited) {
  if (!kFiltered) GTEST_SKIP() << "a sanitizer's build runs without the limit";
  const int status = status_of([] {
    void* const memory = std::malloc(std::size_t{2} << 30U);
    return memory == nullptr ? 0 : kCameBack;
  });
  EXPECT_EQ(status, 0);
}

TEST(SandboxTest, OtherDescriptorsAndTheEnvironmentAreGone) {
  const int other = ::open("/dev/null", O_WRONLY);
  ASSERT_GE(other, 0);
  ::setenv("SECRET", "1", 1);
  const int status = status_of([&] {
    const bool closed = ::write(other, "x", 1) < 0 && errno == EBADF;
    return closed && ::getenv("SECRET") == nullptr ? 0 : kCameBack;
  });
  ::unsetenv("SECRET");
  ::close(other);
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace modelbroker::unpickle
