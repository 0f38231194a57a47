#include "shm/os_features.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <mutex>
#include <sstream>

#include "shm/kernel.h"

namespace modelbroker {
namespace {

constexpr std::size_t kHuge = std::size_t{2} << 20;

// A file of the probe's own. One process makes one at a time (probe_features holds a lock), so one that
// is there already was left by a dead process that had our number.
class ProbeFile {
 public:
  explicit ProbeFile(const std::string& directory)
      : path_(directory + "/modelbroker." + std::to_string(::geteuid()) + ".probe." + std::to_string(::getpid())) {
    ::unlink(path_.c_str());
    fd_ = Fd(::open(path_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
    made_ = static_cast<bool>(fd_);
  }
  ~ProbeFile() {
    if (made_) ::unlink(path_.c_str());
  }
  ProbeFile(const ProbeFile&) = delete;
  ProbeFile& operator=(const ProbeFile&) = delete;
  [[nodiscard]] explicit operator bool() const { return made_; }
  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] int fd() const { return fd_.get(); }
  void close() { fd_.reset(); }

 private:
  std::string path_;
  Fd fd_;
  bool made_ = false;
};

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

void probe_pages(const ProbeFile& file, OsFeatures& features) {
  if (::ftruncate(file.fd(), static_cast<off_t>(kHuge)) != 0) return;
  const ProbeMapping mapping(file.fd());
  if (mapping.get() == nullptr) return;
  features.populate_write = ::madvise(mapping.get(), 4096, kMadvPopulateWrite) == 0;
  features.collapse = features.populate_write && ::madvise(mapping.get(), kHuge, kMadvCollapse) == 0;
}

bool probe_rename(const ProbeFile& file) {
  // Onto itself by another name that exists: only RENAME_NOREPLACE refuses.
  const char* const path = file.path().c_str();
  return ::syscall(SYS_renameat2, AT_FDCWD, path, AT_FDCWD, path, kRenameNoReplace) != 0 && errno == EEXIST;
}

// The kernel must refuse while somebody maps the file, and grant when nobody does: some grant always.
bool probe_write_lease(ProbeFile& file) {
  // An opener during a lease sends SIGIO, whose default is death; a handler that somebody set stays.
  struct sigaction before {};
  if (::sigaction(SIGIO, nullptr, &before) == 0 && before.sa_handler == SIG_DFL) ::signal(SIGIO, SIG_IGN);
  Fd reader(::open(file.path().c_str(), O_RDONLY | O_CLOEXEC));
  if (!reader) return false;
  file.close();
  Fd other(::open(file.path().c_str(), O_RDONLY | O_CLOEXEC));
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

OsFeatures probe_features(const OsOptions& options) {
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  OsFeatures features;
  features.pidfd = probe_pidfd();
  features.peer_pidfd = probe_peer_pidfd();
  features.direct_io = true;
  features.openat2 = probe_openat2();
  features.peer_groups = probe_peer_groups();
  if (ProbeFile file(options.directory); file) {
    features.cachestat = probe_cachestat(file.fd());
    probe_pages(file, features);
    features.rename_noreplace = probe_rename(file);
    features.write_lease = probe_write_lease(file);
  }
  for (const auto& [name, member] : kFeatureNames) {
    if (named(options.disabled, name)) features.*member = false;
  }
  features.collapse = features.collapse && features.populate_write;
  return features;
}

}  // namespace modelbroker
