// Os on Linux. Each method is one call, or the few that one idea takes.
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <memory>

#include "shm/instruments.h"
#include "shm/kernel.h"
#include "shm/os.h"
#include "shm/os_features.h"

namespace modelbroker {
namespace {

constexpr std::size_t kMostText = std::size_t{64} << 10;

tl::unexpected<Errno> last_error() { return tl::unexpected(Errno{errno}); }

// Repeats a call that a signal interrupted before it did anything.
template <class Call>
auto uninterrupted(Call call) {
  decltype(call()) result{};
  do {
    result = call();
  } while (result == -1 && errno == EINTR);
  return result;
}

SysResult<void> done(int result) {
  if (result != 0) return last_error();
  return {};
}

SysResult<Fd> opened(int number) {
  if (number < 0) return last_error();
  return Fd(number);
}

SysResult<sockaddr_un> socket_address(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) return tl::unexpected(Errno{ENAMETOOLONG});
  std::ranges::copy(path, std::begin(address.sun_path));
  return address;
}

class PosixOs final : public Os {
 public:
  explicit PosixOs(OsFeatures features) : features_(features) {}

  const OsFeatures& features() const noexcept override { return features_; }

  // ---- files

  SysResult<Fd> open(const std::string& path, int flags, mode_t mode) override {
    return opened(uninterrupted([&] { return ::open(path.c_str(), flags, mode); }));
  }
  SysResult<Fd> openat(int folder, const std::string& name, int flags) override {
    return opened(uninterrupted([&] { return ::openat(folder, name.c_str(), flags); }));
  }
  SysResult<Fd> open_beneath(int folder, const std::string& path, int flags) override {
    if (!features_.openat2) return tl::unexpected(Errno{ENOSYS});
    const OpenHow how{static_cast<std::uint64_t>(flags), 0, kResolveNoMagicLinks | kResolveBeneath};
    return opened(uninterrupted(
        [&] { return static_cast<int>(::syscall(kSysOpenat2, folder, path.c_str(), &how, sizeof how)); }));
  }
  SysResult<std::string> readlink(int folder, const std::string& name) override {
    std::array<char, 4096> target{};
    const ssize_t got = ::readlinkat(folder, name.c_str(), target.data(), target.size());
    if (got < 0) return last_error();
    if (static_cast<std::size_t>(got) == target.size()) return tl::unexpected(Errno{ENAMETOOLONG});
    return std::string(target.data(), static_cast<std::size_t>(got));
  }
  SysResult<int> open_flags(int fd) override {
    const int flags = ::fcntl(fd, F_GETFL);
    if (flags < 0) return last_error();
    return flags;
  }
  SysResult<struct stat> fstat(int fd) override {
    struct stat found {};
    if (::fstat(fd, &found) != 0) return last_error();
    return found;
  }
  SysResult<struct stat> lstat(const std::string& path) override {
    struct stat found {};
    if (::lstat(path.c_str(), &found) != 0) return last_error();
    return found;
  }
  SysResult<struct statfs> statfs(const std::string& path) override {
    struct statfs found {};
    if (::statfs(path.c_str(), &found) != 0) return last_error();
    return found;
  }
  SysResult<Fd> memory_file(const std::string& name) override {
    auto file = opened(::memfd_create(name.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING | kMfdNoExecSeal));
    if (file || file.error().number != EINVAL) return file;
    return opened(::memfd_create(name.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING));
  }
  SysResult<void> add_seals(int fd, int seals) override { return done(::fcntl(fd, F_ADD_SEALS, seals)); }
  SysResult<int> seals_of(int fd) override {
    const int seals = ::fcntl(fd, F_GET_SEALS);
    if (seals < 0) return last_error();
    return seals;
  }
  SysResult<void> ftruncate(int fd, std::uint64_t size) override {
    return done(uninterrupted([&] { return ::ftruncate(fd, static_cast<off_t>(size)); }));
  }
  SysResult<void> fallocate(int fd, std::uint64_t offset, std::uint64_t size) override {
    // posix_fallocate returns its error. An old kernel starts again after each signal: a bounded number of times.
    int error = EINTR;
    for (int i = 0; i < 100 && error == EINTR; ++i) {
      error = ::posix_fallocate(fd, static_cast<off_t>(offset), static_cast<off_t>(size));
    }
    if (error != 0) return tl::unexpected(Errno{error});
    return {};
  }
  SysResult<void> fchmod(int fd, mode_t mode) override { return done(::fchmod(fd, mode)); }
  SysResult<void> fchgrp(int fd, gid_t group) override { return done(::fchown(fd, static_cast<uid_t>(-1), group)); }
  SysResult<void> give_to_group(const std::string& path, gid_t group, mode_t mode) override {
    if (::lchown(path.c_str(), static_cast<uid_t>(-1), group) != 0) return last_error();
    return done(::fchmodat(AT_FDCWD, path.c_str(), mode, 0));
  }
  bool has_acl(const std::string& path) noexcept override {
    return ::getxattr(path.c_str(), "system.posix_acl_access", nullptr, 0) > 0;
  }
  SysResult<void> mkdir(const std::string& path, mode_t mode) override { return done(::mkdir(path.c_str(), mode)); }
  SysResult<void> unlink(const std::string& path) override { return done(::unlink(path.c_str())); }
  SysResult<void> rename_noreplace(const std::string& from, const std::string& to) override {
    if (features_.rename_noreplace) {
      return done(
          static_cast<int>(::syscall(SYS_renameat2, AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), kRenameNoReplace)));
    }
    if (::link(from.c_str(), to.c_str()) != 0) return last_error();
    crash_point("rename.linked");
    if (::unlink(from.c_str()) == 0) return {};
    const int error = errno;
    ::unlink(to.c_str());  // a file with two names would be nobody's
    return tl::unexpected(Errno{error});
  }
  SysResult<std::size_t> pread(int fd, std::span<std::byte> into, std::uint64_t offset) override {
    const ssize_t got =
        uninterrupted([&] { return ::pread(fd, into.data(), into.size(), static_cast<off_t>(offset)); });
    if (got < 0) return last_error();
    return static_cast<std::size_t>(got);
  }
  SysResult<std::vector<std::string>> list_directory(const std::string& path) override {
    const std::unique_ptr<DIR, int (*)(DIR*)> directory(::opendir(path.c_str()), &::closedir);
    if (!directory) return last_error();
    std::vector<std::string> names;
    while (true) {
      errno = 0;
      const dirent* const entry = ::readdir(directory.get());
      if (entry == nullptr) break;
      names.emplace_back(entry->d_name);
    }
    if (errno != 0) return last_error();
    return names;
  }
  SysResult<std::string> read_text(const std::string& path) override {
    const Fd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!file) return last_error();
    std::string text(kMostText, '\0');
    std::size_t size = 0;
    while (size < text.size()) {
      const ssize_t got = uninterrupted([&] { return ::read(file.get(), text.data() + size, text.size() - size); });
      if (got < 0) return last_error();
      if (got == 0) break;
      size += static_cast<std::size_t>(got);
    }
    text.resize(size);
    return text;
  }
  SysResult<std::uint64_t> cached_bytes(int fd, std::uint64_t offset, std::uint64_t size) override {
    return features_.cachestat ? cached_by_cachestat(fd, offset, size) : cached_by_mincore(fd, offset, size);
  }

  // ---- locks and leases

  SysResult<void> lock_exclusive(int fd) override {
    return done(uninterrupted([&] { return ::flock(fd, LOCK_EX | LOCK_NB); }));
  }
  SysResult<void> lock_shared(int fd) override {
    return done(uninterrupted([&] { return ::flock(fd, LOCK_SH | LOCK_NB); }));
  }
  SysResult<bool> nobody_else_has_it(int fd) override {
    if (!features_.write_lease) return tl::unexpected(Errno{EOPNOTSUPP});
    if (::fcntl(fd, F_SETLEASE, F_WRLCK) != 0) {
      if (errno == EAGAIN) return false;
      return last_error();
    }
    // Given back at once: an opener waits for us meanwhile.
    if (::fcntl(fd, F_SETLEASE, F_UNLCK) != 0) return last_error();
    return true;
  }

  bool may_have_writer(int fd) noexcept override {
    // A read lease is granted only if nobody has the file open or mapped for writing.
    if (::fcntl(fd, F_SETLEASE, F_RDLCK) != 0) return true;
    return ::fcntl(fd, F_SETLEASE, F_UNLCK) != 0;
  }
  // A page under writeback that was written again meanwhile would be passed over by WRITE alone, and stay dirty.
  void clean_pages(int fd) noexcept override {
    ::sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE);
  }

  // ---- address space

  SysResult<void*> reserve(std::size_t wanted, std::size_t alignment) override {
    const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    const std::size_t size = (wanted + page - 1) / page * page;
    const std::size_t whole = size + alignment;
    if (whole < wanted) return tl::unexpected(Errno{ENOMEM});
    void* const area = ::mmap(nullptr, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (area == MAP_FAILED) return last_error();
    const auto begin = reinterpret_cast<std::uintptr_t>(area);
    const std::uintptr_t aligned = (begin + alignment - 1) & ~(alignment - 1);
    if (aligned > begin) ::munmap(area, aligned - begin);
    const std::size_t behind = begin + whole - (aligned + size);
    if (behind > 0) ::munmap(reinterpret_cast<void*>(aligned + size), behind);
    return reinterpret_cast<void*>(aligned);
  }
  void unreserve(void* address, std::size_t size) noexcept override { ::munmap(address, size); }
  SysResult<void> advise(void* address, std::size_t size, int advice) override {
    return done(uninterrupted([&] { return ::madvise(address, size, advice); }));
  }

  // ---- sockets

  SysResult<Fd> listen_seqpacket(const std::string& path, mode_t mode) override {
    auto address = socket_address(path);
    if (!address) return tl::unexpected(address.error());
    Fd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!socket) return last_error();
    // umask, not chmod afterwards: the socket never exists with wider rights.
    const mode_t before = ::umask(static_cast<mode_t>(~mode & 0777U));
    const int bound = ::bind(socket.get(), reinterpret_cast<const sockaddr*>(&*address), sizeof *address);
    const int error = errno;
    ::umask(before);
    errno = error;
    if (bound != 0 || ::listen(socket.get(), SOMAXCONN) != 0) return last_error();
    return socket;
  }
  SysResult<Fd> connect_seqpacket(const std::string& path, std::chrono::milliseconds most) override {
    auto address = socket_address(path);
    if (!address) return tl::unexpected(address.error());
    Fd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    if (!socket) return last_error();
    // A listener whose queue is full lets connect() wait.
    const timeval longest{most.count() / 1000, most.count() % 1000 * 1000};
    if (::setsockopt(socket.get(), SOL_SOCKET, SO_SNDTIMEO, &longest, sizeof longest) != 0) return last_error();
    const int connected = uninterrupted(
        [&] { return ::connect(socket.get(), reinterpret_cast<const sockaddr*>(&*address), sizeof *address); });
    if (connected != 0) return last_error();
    return socket;
  }
  SysResult<Fd> accept(int listener) override {
    return opened(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  }
  SysResult<ucred> peer_credentials(int socket) override {
    ucred credentials{};
    socklen_t size = sizeof credentials;
    if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0) return last_error();
    return credentials;
  }
  SysResult<std::vector<gid_t>> peer_groups(int socket) override {
    if (!features_.peer_groups) return tl::unexpected(Errno{ENOTSUP});
    std::vector<gid_t> groups(64);
    while (true) {
      auto size = static_cast<socklen_t>(groups.size() * sizeof(gid_t));
      if (::getsockopt(socket, SOL_SOCKET, kSoPeerGroups, groups.data(), &size) == 0) {
        groups.resize(size / sizeof(gid_t));
        return groups;
      }
      if (errno != ERANGE || size <= groups.size() * sizeof(gid_t)) return last_error();
      groups.resize(size / sizeof(gid_t));
    }
  }
  SysResult<Fd> peer_pidfd(int socket) override {
    if (!features_.peer_pidfd) return tl::unexpected(Errno{ENOTSUP});
    int number = -1;
    socklen_t size = sizeof number;
    if (::getsockopt(socket, SOL_SOCKET, kSoPeerPidfd, &number, &size) != 0) return last_error();
    return Fd(number);
  }
  SysResult<Fd> pidfd_open(pid_t pid) override {
    if (!features_.pidfd) return tl::unexpected(Errno{ENOSYS});
    return opened(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  }
  SysResult<Packet> receive(int socket, std::size_t limit, std::size_t fd_limit) override;
  SysResult<void> send(int socket, std::span<const std::byte> bytes, std::span<const int> descriptors) override;

  // ---- events

  SysResult<Fd> epoll_create() override { return opened(::epoll_create1(EPOLL_CLOEXEC)); }
  SysResult<void> epoll_add(int epoll, int fd, std::uint32_t events, std::uint64_t key) override {
    epoll_event event{};
    event.events = events;
    event.data.u64 = key;
    return done(::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event));
  }
  SysResult<void> epoll_remove(int epoll, int fd) override {
    return done(::epoll_ctl(epoll, EPOLL_CTL_DEL, fd, nullptr));
  }
  SysResult<std::vector<Ready>> epoll_poll(int epoll, std::size_t most) override {
    std::vector<epoll_event> events(most);
    const int count = ::epoll_wait(epoll, events.data(), static_cast<int>(most), 0);
    if (count < 0) return last_error();
    std::vector<Ready> ready;
    for (int i = 0; i < count; ++i) {
      const epoll_event& event = events[static_cast<std::size_t>(i)];
      ready.push_back({event.data.u64, event.events});
    }
    return ready;
  }
  SysResult<Fd> event_fd() override { return opened(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)); }
  void event_fd_signal(int fd) noexcept override { (void)::eventfd_write(fd, 1); }
  void event_fd_drain(int fd) noexcept override {
    eventfd_t value = 0;
    (void)::eventfd_read(fd, &value);
  }
  SysResult<Fd> signal_fd(std::span<const int> signals) override {
    sigset_t set;
    ::sigemptyset(&set);
    for (const int number : signals) ::sigaddset(&set, number);
    if (const int error = ::pthread_sigmask(SIG_BLOCK, &set, nullptr); error != 0) return tl::unexpected(Errno{error});
    return opened(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  }
  SysResult<int> read_signal(int fd) override {
    signalfd_siginfo info{};
    if (::read(fd, &info, sizeof info) != static_cast<ssize_t>(sizeof info)) return last_error();
    return static_cast<int>(info.ssi_signo);
  }
  SysResult<Fd> inotify_create() override { return opened(::inotify_init1(IN_CLOEXEC | IN_NONBLOCK)); }
  SysResult<int> inotify_watch_close(int inotify, const std::string& path) override {
    const int watch = ::inotify_add_watch(inotify, path.c_str(), IN_CLOSE);
    if (watch < 0) return last_error();
    return watch;
  }
  SysResult<void> inotify_unwatch(int inotify, int watch) override { return done(::inotify_rm_watch(inotify, watch)); }
  SysResult<std::vector<int>> inotify_read(int inotify) override {
    alignas(inotify_event) std::array<char, 4096> buffer{};
    const ssize_t got = ::read(inotify, buffer.data(), buffer.size());
    if (got < 0) return last_error();
    std::vector<int> watches;
    for (std::size_t at = 0; at + sizeof(inotify_event) <= static_cast<std::size_t>(got);) {
      inotify_event event{};
      std::memcpy(&event, buffer.data() + at, sizeof event);
      if ((event.mask & IN_CLOSE) != 0) watches.push_back(event.wd);
      at += sizeof event + event.len;
    }
    return watches;
  }

  std::uint64_t boottime_ns() noexcept override {
    timespec now{};
    ::clock_gettime(CLOCK_BOOTTIME, &now);
    return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000U + static_cast<std::uint64_t>(now.tv_nsec);
  }
  uid_t uid() noexcept override { return ::geteuid(); }

 private:
  SysResult<std::uint64_t> cached_by_cachestat(int fd, std::uint64_t offset, std::uint64_t size) {
    CachestatRange range{offset, size};
    Cachestat result;
    if (::syscall(kSysCachestat, fd, &range, &result, 0) != 0) return last_error();
    return result.cached * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  }
  SysResult<std::uint64_t> cached_by_mincore(int fd, std::uint64_t offset, std::uint64_t size) {
    const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
    const std::uint64_t begin = offset / page * page;
    const std::size_t length = static_cast<std::size_t>(offset + size - begin);
    if (length == 0) return 0;
    void* const mapped = ::mmap(nullptr, length, PROT_READ, MAP_SHARED | MAP_NORESERVE, fd, static_cast<off_t>(begin));
    if (mapped == MAP_FAILED) return last_error();
    std::vector<unsigned char> resident((length + page - 1) / page);
    const int looked = ::mincore(mapped, length, resident.data());
    const int error = errno;
    ::munmap(mapped, length);
    if (looked != 0) return tl::unexpected(Errno{error});
    const auto count = std::ranges::count_if(resident, [](unsigned char bits) { return (bits & 1U) != 0; });
    return static_cast<std::uint64_t>(count) * page;
  }

  const OsFeatures features_;
};

SysResult<Os::Packet> PosixOs::receive(int socket, std::size_t limit, std::size_t fd_limit) {
  constexpr std::size_t kControlDescriptors = 64;  // room for more than anybody may send, to see and close them
  Packet packet;
  packet.bytes.resize(limit);
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * kControlDescriptors)> control{};
  iovec vector{packet.bytes.data(), packet.bytes.size()};
  msghdr message{};
  message.msg_iov = &vector;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  const ssize_t got = uninterrupted([&] { return ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC); });
  if (got < 0) return last_error();
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int number = -1;
      std::memcpy(&number, CMSG_DATA(header) + i * sizeof(int), sizeof number);
      packet.descriptors.emplace_back(number);
    }
  }
  const bool truncated = (message.msg_flags & MSG_CTRUNC) != 0;
  if (truncated && packet.descriptors.size() < kControlDescriptors) return tl::unexpected(Errno{EMFILE});  // unix(7)
  if (truncated || (message.msg_flags & MSG_TRUNC) != 0 || packet.descriptors.size() > fd_limit) {
    return tl::unexpected(Errno{EMSGSIZE});
  }
  packet.bytes.resize(static_cast<std::size_t>(got));
  return packet;
}

SysResult<void> PosixOs::send(int socket, std::span<const std::byte> bytes, std::span<const int> descriptors) {
  std::vector<char> control(descriptors.empty() ? 0 : CMSG_SPACE(descriptors.size_bytes()));
  iovec vector{const_cast<std::byte*>(bytes.data()), bytes.size()};
  msghdr message{};
  message.msg_iov = &vector;
  message.msg_iovlen = 1;
  if (!descriptors.empty()) {
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(descriptors.size_bytes());
    std::memcpy(CMSG_DATA(header), descriptors.data(), descriptors.size_bytes());
  }
  const ssize_t sent = uninterrupted([&] { return ::sendmsg(socket, &message, MSG_NOSIGNAL); });
  if (sent < 0) return last_error();
  return {};
}

}  // namespace

std::unique_ptr<Os> make_os(const OsOptions& options) { return std::make_unique<PosixOs>(probe_features(options)); }

std::unique_ptr<Os> make_plain_os() { return std::make_unique<PosixOs>(OsFeatures{}); }

}  // namespace modelbroker
