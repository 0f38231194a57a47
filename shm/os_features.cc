#include "shm/os_features.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <sstream>
#include <utility>

#include "shm/kernel.h"

namespace modelbroker {
namespace {

constexpr std::size_t kHuge = std::size_t{2} << 20;

// 2 MiB of the file at a 2 MiB-aligned address, or nothing.
class ProbeMapping {
 public:
  explicit ProbeMapping(int fd) {
    void* const area = ::mmap(nullptr, 2 * kHuge, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (area == MAP_FAILED) return;
    area_ = area;
    const auto address = (reinterpret_cast<std::uintptr_t>(area) + kHuge - 1) / kHuge * kHuge;
    void* const mapped =
        ::mmap(reinterpret_cast<void*>(address), kHuge, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
    if (mapped != MAP_FAILED) address_ = mapped;
  }
  ~ProbeMapping() {
    if (area_ != nullptr) ::munmap(area_, 2 * kHuge);
  }
  ProbeMapping(const ProbeMapping&) = delete;
  ProbeMapping& operator=(const ProbeMapping&) = delete;
  [[nodiscard]] void* get() const { return address_; }

 private:
  void* area_ = nullptr;
  void* address_ = nullptr;
};

void probe_pages(int file, OsFeatures& features) {
  if (::ftruncate(file, static_cast<off_t>(kHuge)) != 0) return;
  const ProbeMapping mapping(file);
  if (mapping.get() == nullptr) return;
  features.populate_write = ::madvise(mapping.get(), 4096, kMadvPopulateWrite) == 0;
  features.collapse = features.populate_write && ::madvise(mapping.get(), kHuge, kMadvCollapse) == 0;
}

// By names that nobody has: a kernel that knows the flag looks for the file first. What the file system makes of it
// shows when a block is published.
bool probe_rename(const std::string& directory) {
  const std::string from = directory + "/modelbroker.nothing." + std::to_string(::getpid());
  const std::string to = from + ".either";
  return ::syscall(SYS_renameat2, AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), kRenameNoReplace) != 0 &&
         errno == ENOENT;
}

// The kernel must refuse while somebody maps the file, and grant when nobody does: some grant always.
bool probe_write_lease(Fd file) {
  const std::string path = "/proc/self/fd/" + std::to_string(file.get());
  // An opener during a lease sends SIGIO, whose default is death; a handler that somebody set stays.
  struct sigaction before {};
  if (::sigaction(SIGIO, nullptr, &before) == 0 && before.sa_handler == SIG_DFL) ::signal(SIGIO, SIG_IGN);
  Fd reader(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  Fd other(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!reader || !other) return false;
  file.reset();
  void* const mapped = ::mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE, other.get(), 0);
  other.reset();
  if (mapped == MAP_FAILED) return false;
  const bool refused = ::fcntl(reader.get(), F_SETLEASE, F_WRLCK) != 0 && errno == EAGAIN;
  ::munmap(mapped, 4096);
  const bool granted = ::fcntl(reader.get(), F_SETLEASE, F_WRLCK) == 0;
  if (granted) ::fcntl(reader.get(), F_SETLEASE, F_UNLCK);
  return refused && granted;
}

bool probe_pidfd() { return Fd(static_cast<int>(::syscall(SYS_pidfd_open, ::getpid(), 0))).operator bool(); }

bool probe_peer_pidfd() {
  std::array<int, 2> pair{};
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair.data()) != 0) return false;
  const Fd one(pair[0]);
  const Fd two(pair[1]);
  int number = -1;
  socklen_t size = sizeof number;
  if (::getsockopt(one.get(), SOL_SOCKET, kSoPeerPidfd, &number, &size) != 0) return false;
  const Fd pidfd(number);
  return true;
}

bool probe_openat2() {
  const Fd folder(::open("/", O_PATH | O_DIRECTORY | O_CLOEXEC));
  const OpenHow how{O_PATH | O_DIRECTORY | O_CLOEXEC, 0, kResolveNoMagicLinks | kResolveBeneath};
  return Fd(static_cast<int>(::syscall(kSysOpenat2, folder.get(), ".", &how, sizeof how))).operator bool();
}

bool probe_peer_groups() {
  std::array<int, 2> pair{};
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair.data()) != 0) return false;
  const Fd one(pair[0]);
  const Fd two(pair[1]);
  std::array<gid_t, 1> group{};
  socklen_t size = sizeof group;
  return ::getsockopt(one.get(), SOL_SOCKET, kSoPeerGroups, group.data(), &size) == 0 || errno == ERANGE;
}

bool probe_cachestat(int fd) {
  CachestatRange range{0, 4096};
  Cachestat result{};
  return ::syscall(kSysCachestat, fd, &range, &result, 0) == 0;
}

bool named(const std::string& list, std::string_view name) {
  std::istringstream words(list);
  for (std::string word; std::getline(words, word, ',');) {
    if (word == name || word == "all") return true;
  }
  return false;
}

}  // namespace

SysResult<Fd> make_nameless_file(const std::string& directory) {
  Fd file(::open(directory.c_str(), O_TMPFILE | O_RDWR | O_EXCL | O_CLOEXEC, 0600));
  if (file) return file;
  static std::atomic<unsigned> number = 0;
  const std::string path = directory + "/modelbroker." + std::to_string(::geteuid()) + ".probe." +
                           std::to_string(::getpid()) + "." + std::to_string(number++);
  ::unlink(path.c_str());  // left by a dead process that had our number
  file = Fd(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
  const int error = errno;
  ::unlink(path.c_str());
  if (!file) return tl::unexpected(Errno{error});
  return file;
}

OsFeatures probe_features(const OsOptions& options) {
  OsFeatures features;
  features.pidfd = probe_pidfd();
  features.peer_pidfd = probe_peer_pidfd();
  features.direct_io = true;
  features.openat2 = probe_openat2();
  features.peer_groups = probe_peer_groups();
  if (auto file = make_nameless_file(options.directory)) {
    features.cachestat = probe_cachestat(file->get());
    probe_pages(file->get(), features);
    features.rename_noreplace = probe_rename(options.directory);
    features.write_lease = probe_write_lease(std::move(*file));
  }
  for (const auto& [name, member] : kFeatureNames) {
    if (named(options.disabled, name)) features.*member = false;
  }
  features.collapse = features.collapse && features.populate_write;
  return features;
}

}  // namespace modelbroker
