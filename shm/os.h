// Os: every system call that modelbroker makes itself, behind one interface.
//
// So a test can fail the k-th call, and so what a kernel lacks is decided in one place: features are
// probed once, and each can be switched off (MODELBROKER_DISABLE_FEATURES=collapse,write_lease,...)
// to run on the second way. Calls return the value or the errno; they repeat EINTR themselves where
// that is harmless. Threads: any thread may call any method; there is no state after construction.
// Failure: nothing is changed but what the man page of the call says.
#pragma once

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <chrono>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <utility>
#include <vector>

#include "shm/fd.h"

namespace modelbroker {

struct Errno {
  int number = 0;
};
template <class T>
using SysResult = tl::expected<T, Errno>;

// What this kernel and container give. Second ways: docs/architecture.md.
struct OsFeatures {
  bool collapse = false;          // MADV_COLLAPSE gives 2 MiB pages (Linux 6.1)
  bool populate_write = false;    // MADV_POPULATE_WRITE (Linux 5.14); else posix_fallocate
  bool rename_noreplace = false;  // renameat2(RENAME_NOREPLACE) on this file system; else link + unlink
  bool write_lease = false;       // F_SETLEASE tells whether anybody has a block open or mapped
  bool pidfd = false;             // pidfd_open; else hang-up and heartbeat alone
  bool peer_pidfd = false;        // SO_PEERPIDFD (Linux 6.5); else pidfd_open of SO_PEERCRED's pid
  bool cachestat = false;         // cachestat (Linux 6.5); else mincore on a mapping
  bool direct_io = false;         // may be tried; the file system decides for each file
  bool openat2 = false;           // RESOLVE_BENEATH (Linux 5.6); else folder by folder
  bool peer_groups = false;       // SO_PEERGROUPS (Linux 4.13); else a peer's first group alone
};

// Their names, as users write them.
inline constexpr std::array<std::pair<std::string_view, bool OsFeatures::*>, 10> kFeatureNames{
    {{"collapse", &OsFeatures::collapse},
     {"populate_write", &OsFeatures::populate_write},
     {"rename_noreplace", &OsFeatures::rename_noreplace},
     {"write_lease", &OsFeatures::write_lease},
     {"pidfd", &OsFeatures::pidfd},
     {"peer_pidfd", &OsFeatures::peer_pidfd},
     {"cachestat", &OsFeatures::cachestat},
     {"direct_io", &OsFeatures::direct_io},
     {"openat2", &OsFeatures::openat2},
     {"peer_groups", &OsFeatures::peer_groups}}};

class Os {
 public:
  virtual ~Os() = default;

  [[nodiscard]] virtual const OsFeatures& features() const noexcept = 0;

  // Files.
  [[nodiscard]] virtual SysResult<Fd> open(const std::string& path, int flags, mode_t mode) = 0;
  [[nodiscard]] virtual SysResult<Fd> openat(int folder, const std::string& name, int flags) = 0;
  // `path` beneath `folder`, and no way out of it: links that stay within are followed, others are EXDEV, those of
  // /proc ELOOP. ENOSYS without the feature.
  [[nodiscard]] virtual SysResult<Fd> open_beneath(int folder, const std::string& path, int flags) = 0;
  // Where a link leads; an empty name: `folder` itself, an O_PATH descriptor of a link.
  [[nodiscard]] virtual SysResult<std::string> readlink(int folder, const std::string& name) = 0;
  // How a descriptor was opened (F_GETFL).
  [[nodiscard]] virtual SysResult<int> open_flags(int fd) = 0;
  [[nodiscard]] virtual SysResult<struct stat> fstat(int fd) = 0;
  [[nodiscard]] virtual SysResult<struct stat> lstat(const std::string& path) = 0;
  [[nodiscard]] virtual SysResult<struct statfs> statfs(const std::string& path) = 0;
  // Memory as a nameless file (memfd_create) that may be sealed, and never executed where the kernel can forbid it.
  [[nodiscard]] virtual SysResult<Fd> memory_file(const std::string& name) = 0;
  // F_SEAL_... of such a file. EBUSY: F_SEAL_WRITE, and a process has it mapped for writing.
  [[nodiscard]] virtual SysResult<void> add_seals(int fd, int seals) = 0;
  [[nodiscard]] virtual SysResult<int> seals_of(int fd) = 0;  // EINVAL: not a file that can have any
  [[nodiscard]] virtual SysResult<void> ftruncate(int fd, std::uint64_t size) = 0;
  [[nodiscard]] virtual SysResult<void> fallocate(int fd, std::uint64_t offset, std::uint64_t size) = 0;
  [[nodiscard]] virtual SysResult<void> fchmod(int fd, mode_t mode) = 0;
  [[nodiscard]] virtual SysResult<void> fchgrp(int fd, gid_t group) = 0;
  // The same two for what cannot be opened: a socket. Follows no link.
  [[nodiscard]] virtual SysResult<void> give_to_group(const std::string& path, gid_t group, mode_t mode) = 0;
  // Whether rights beyond the mode bits are written at the file.
  [[nodiscard]] virtual bool has_acl(const std::string& path) noexcept = 0;
  [[nodiscard]] virtual SysResult<void> mkdir(const std::string& path, mode_t mode) = 0;
  [[nodiscard]] virtual SysResult<void> unlink(const std::string& path) = 0;
  // Fails with EEXIST rather than replace. Falls back to link + unlink without the feature.
  [[nodiscard]] virtual SysResult<void> rename_noreplace(const std::string& from, const std::string& to) = 0;
  // One pread; 0 is the end of the file.
  [[nodiscard]] virtual SysResult<std::size_t> pread(int fd, std::span<std::byte> into, std::uint64_t offset) = 0;
  [[nodiscard]] virtual SysResult<std::vector<std::string>> list_directory(const std::string& path) = 0;
  // The whole of a small text file (/proc, /sys), at most 64 KiB.
  [[nodiscard]] virtual SysResult<std::string> read_text(const std::string& path) = 0;
  // Bytes of the range that the page cache holds; ENOSYS where nobody can tell.
  [[nodiscard]] virtual SysResult<std::uint64_t> cached_bytes(int fd, std::uint64_t offset, std::uint64_t size) = 0;

  // Locks and leases.
  [[nodiscard]] virtual SysResult<void> lock_exclusive(int fd) = 0;  // flock LOCK_EX|LOCK_NB; EWOULDBLOCK
  [[nodiscard]] virtual SysResult<void> lock_shared(int fd) = 0;     // flock LOCK_SH|LOCK_NB; EWOULDBLOCK
  // The kernel's word: true if no other open description and no mapping of the file exists. The process
  // must ignore SIGIO (make_os sees to it): an opener at that moment sends it, and its default is death.
  [[nodiscard]] virtual SysResult<bool> nobody_else_has_it(int fd) = 0;
  // Whether anybody may write the file, by a descriptor or a mapping; true where the kernel cannot say.
  [[nodiscard]] virtual bool may_have_writer(int fd) noexcept = 0;
  // Makes dirty pages clean: from then on a store through an older mapping faults, and so changes the file's mtime.
  // Waits for the disk where pages are on their way to it already. Nothing happens on a tmpfs.
  virtual void clean_pages(int fd) noexcept = 0;

  // Address space.
  // A range of `size` bytes aligned to `alignment` (a power of two), PROT_NONE, nothing behind it.
  [[nodiscard]] virtual SysResult<void*> reserve(std::size_t size, std::size_t alignment) = 0;
  virtual void unreserve(void* address, std::size_t size) noexcept = 0;
  [[nodiscard]] virtual SysResult<void> advise(void* address, std::size_t size, int advice) = 0;

  // Sockets (AF_UNIX, SOCK_SEQPACKET; always close-on-exec, accepted ones non-blocking).
  [[nodiscard]] virtual SysResult<Fd> listen_seqpacket(const std::string& path, mode_t mode) = 0;
  // EAGAIN where nobody accepts for so long; later sends wait as long at most.
  [[nodiscard]] virtual SysResult<Fd> connect_seqpacket(const std::string& path, std::chrono::milliseconds most) = 0;
  [[nodiscard]] virtual SysResult<Fd> accept(int listener) = 0;
  [[nodiscard]] virtual SysResult<ucred> peer_credentials(int socket) = 0;
  // The peer's further groups when it connected; ENOTSUP where the kernel does not tell.
  [[nodiscard]] virtual SysResult<std::vector<gid_t>> peer_groups(int socket) = 0;
  // A pidfd of the peer as it was when it connected; ENOTSUP where the kernel gives none.
  [[nodiscard]] virtual SysResult<Fd> peer_pidfd(int socket) = 0;
  [[nodiscard]] virtual SysResult<Fd> pidfd_open(pid_t pid) = 0;
  // One packet with its descriptors (all MSG_CMSG_CLOEXEC). Empty bytes: the peer hung up. EMSGSIZE: it was
  // longer than `limit` or carried more than `fd_limit` descriptors. EMFILE: this process may not open those that
  // it carried. What arrived has been closed then.
  struct Packet {
    std::vector<std::byte> bytes;
    std::vector<Fd> descriptors;
  };
  [[nodiscard]] virtual SysResult<Packet> receive(int socket, std::size_t limit, std::size_t fd_limit) = 0;
  [[nodiscard]] virtual SysResult<void> send(int socket, std::span<const std::byte> bytes,
                                             std::span<const int> descriptors) = 0;

  // Events.
  [[nodiscard]] virtual SysResult<Fd> epoll_create() = 0;
  [[nodiscard]] virtual SysResult<void> epoll_add(int epoll, int fd, std::uint32_t events, std::uint64_t key) = 0;
  [[nodiscard]] virtual SysResult<void> epoll_remove(int epoll, int fd) = 0;
  struct Ready {
    std::uint64_t key = 0;
    std::uint32_t events = 0;
  };
  // Never waits.
  [[nodiscard]] virtual SysResult<std::vector<Ready>> epoll_poll(int epoll, std::size_t most) = 0;
  [[nodiscard]] virtual SysResult<Fd> event_fd() = 0;  // non-blocking counter
  virtual void event_fd_signal(int fd) noexcept = 0;
  virtual void event_fd_drain(int fd) noexcept = 0;
  [[nodiscard]] virtual SysResult<Fd> signal_fd(std::span<const int> signals) = 0;  // also blocks them
  [[nodiscard]] virtual SysResult<int> read_signal(int fd) = 0;
  [[nodiscard]] virtual SysResult<Fd> inotify_create() = 0;
  [[nodiscard]] virtual SysResult<int> inotify_watch_close(int inotify, const std::string& path) = 0;
  [[nodiscard]] virtual SysResult<void> inotify_unwatch(int inotify, int watch) = 0;
  [[nodiscard]] virtual SysResult<std::vector<int>> inotify_read(int inotify) = 0;  // watches that fired

  [[nodiscard]] virtual std::uint64_t boottime_ns() noexcept = 0;
  [[nodiscard]] virtual uid_t uid() noexcept = 0;
};

// The real one. `directory`: where blocks will live, for the probes that depend on the file system
// (they write and remove one small file there). `disabled`: comma-separated feature names to leave out.
struct OsOptions {
  std::string directory;
  std::string disabled;
};
[[nodiscard]] std::unique_ptr<Os> make_os(const OsOptions& options);
// Without probing: every feature off. For programs that only open, map and send (CLI, clients).
[[nodiscard]] std::unique_ptr<Os> make_plain_os();

}  // namespace modelbroker
