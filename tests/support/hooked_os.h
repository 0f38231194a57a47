// HookedOs: an Os that lets a test do something at a read, or refuse pages. A hook may run on several
// threads at once; nothing else of it changes after the first call.
#pragma once

#include <cstdint>
#include <functional>

#include "shm/os.h"

namespace modelbroker::testing {

class HookedOs final : public Os {
 public:
  explicit HookedOs(Os& inner) : inner_(inner) {}

  // In place of pread; it may call inner().
  std::function<SysResult<std::size_t>(int, std::span<std::byte>, std::uint64_t)> on_pread;
  // Before memory is made (madvise, fallocate): an errno to fail with, or 0.
  std::function<int()> on_pages;
  [[nodiscard]] Os& inner() const noexcept { return inner_; }

  const OsFeatures& features() const noexcept override { return inner_.features(); }
  SysResult<Fd> open(const std::string& path, int flags, mode_t mode) override {
    return inner_.open(path, flags, mode);
  }
  SysResult<Fd> openat(int folder, const std::string& name, int flags) override {
    return inner_.openat(folder, name, flags);
  }
  SysResult<Fd> open_beneath(int folder, const std::string& path, int flags) override {
    return inner_.open_beneath(folder, path, flags);
  }
  SysResult<std::string> readlink(int folder, const std::string& name) override {
    return inner_.readlink(folder, name);
  }
  SysResult<int> open_flags(int fd) override { return inner_.open_flags(fd); }
  SysResult<struct stat> fstat(int fd) override { return inner_.fstat(fd); }
  SysResult<struct stat> lstat(const std::string& path) override { return inner_.lstat(path); }
  SysResult<struct statfs> statfs(const std::string& path) override { return inner_.statfs(path); }
  SysResult<Fd> memory_file(const std::string& name) override { return inner_.memory_file(name); }
  SysResult<void> add_seals(int fd, int seals) override { return inner_.add_seals(fd, seals); }
  SysResult<int> seals_of(int fd) override { return inner_.seals_of(fd); }
  SysResult<void> ftruncate(int fd, std::uint64_t size) override { return inner_.ftruncate(fd, size); }
  SysResult<void> fallocate(int fd, std::uint64_t offset, std::uint64_t size) override {
    if (const int error = page_error(); error != 0) return tl::unexpected(Errno{error});
    return inner_.fallocate(fd, offset, size);
  }
  SysResult<void> fchmod(int fd, mode_t mode) override { return inner_.fchmod(fd, mode); }
  SysResult<void> fchgrp(int fd, gid_t group) override { return inner_.fchgrp(fd, group); }
  SysResult<void> give_to_group(const std::string& path, gid_t group, mode_t mode) override {
    return inner_.give_to_group(path, group, mode);
  }
  bool has_acl(const std::string& path) noexcept override { return inner_.has_acl(path); }
  SysResult<void> mkdir(const std::string& path, mode_t mode) override { return inner_.mkdir(path, mode); }
  SysResult<void> unlink(const std::string& path) override { return inner_.unlink(path); }
  SysResult<void> rename_noreplace(const std::string& from, const std::string& to) override {
    return inner_.rename_noreplace(from, to);
  }
  SysResult<std::size_t> pread(int fd, std::span<std::byte> into, std::uint64_t offset) override {
    return on_pread ? on_pread(fd, into, offset) : inner_.pread(fd, into, offset);
  }
  SysResult<std::vector<std::string>> list_directory(const std::string& path) override {
    return inner_.list_directory(path);
  }
  SysResult<std::string> read_text(const std::string& path) override { return inner_.read_text(path); }
  SysResult<std::uint64_t> cached_bytes(int fd, std::uint64_t offset, std::uint64_t size) override {
    return inner_.cached_bytes(fd, offset, size);
  }
  SysResult<void> lock_exclusive(int fd) override { return inner_.lock_exclusive(fd); }
  SysResult<void> lock_shared(int fd) override { return inner_.lock_shared(fd); }
  SysResult<bool> nobody_else_has_it(int fd) override { return inner_.nobody_else_has_it(fd); }
  bool may_have_writer(int fd) noexcept override { return inner_.may_have_writer(fd); }
  void clean_pages(int fd) noexcept override { inner_.clean_pages(fd); }
  SysResult<void*> reserve(std::size_t size, std::size_t alignment) override { return inner_.reserve(size, alignment); }
  void unreserve(void* address, std::size_t size) noexcept override { inner_.unreserve(address, size); }
  SysResult<void> advise(void* address, std::size_t size, int advice) override {
    if (const int error = page_error(); error != 0) return tl::unexpected(Errno{error});
    return inner_.advise(address, size, advice);
  }
  SysResult<Fd> listen_seqpacket(const std::string& path, mode_t mode) override {
    return inner_.listen_seqpacket(path, mode);
  }
  SysResult<Fd> connect_seqpacket(const std::string& path, std::chrono::milliseconds most) override {
    return inner_.connect_seqpacket(path, most);
  }
  SysResult<Fd> accept(int listener) override { return inner_.accept(listener); }
  SysResult<ucred> peer_credentials(int socket) override { return inner_.peer_credentials(socket); }
  SysResult<std::vector<gid_t>> peer_groups(int socket) override { return inner_.peer_groups(socket); }
  SysResult<Fd> peer_pidfd(int socket) override { return inner_.peer_pidfd(socket); }
  SysResult<Fd> pidfd_open(pid_t pid) override { return inner_.pidfd_open(pid); }
  SysResult<Packet> receive(int socket, std::size_t limit, std::size_t fd_limit) override {
    return inner_.receive(socket, limit, fd_limit);
  }
  SysResult<void> send(int socket, std::span<const std::byte> bytes, std::span<const int> descriptors) override {
    return inner_.send(socket, bytes, descriptors);
  }
  SysResult<Fd> epoll_create() override { return inner_.epoll_create(); }
  SysResult<void> epoll_add(int epoll, int fd, std::uint32_t events, std::uint64_t key) override {
    return inner_.epoll_add(epoll, fd, events, key);
  }
  SysResult<void> epoll_remove(int epoll, int fd) override { return inner_.epoll_remove(epoll, fd); }
  SysResult<std::vector<Ready>> epoll_poll(int epoll, std::size_t most) override {
    return inner_.epoll_poll(epoll, most);
  }
  SysResult<Fd> event_fd() override { return inner_.event_fd(); }
  void event_fd_signal(int fd) noexcept override { inner_.event_fd_signal(fd); }
  void event_fd_drain(int fd) noexcept override { inner_.event_fd_drain(fd); }
  SysResult<Fd> signal_fd(std::span<const int> signals) override { return inner_.signal_fd(signals); }
  SysResult<int> read_signal(int fd) override { return inner_.read_signal(fd); }
  SysResult<Fd> inotify_create() override { return inner_.inotify_create(); }
  SysResult<int> inotify_watch_close(int inotify, const std::string& path) override {
    return inner_.inotify_watch_close(inotify, path);
  }
  SysResult<void> inotify_unwatch(int inotify, int watch) override { return inner_.inotify_unwatch(inotify, watch); }
  SysResult<std::vector<int>> inotify_read(int inotify) override { return inner_.inotify_read(inotify); }
  std::uint64_t boottime_ns() noexcept override { return inner_.boottime_ns(); }
  uid_t uid() noexcept override { return inner_.uid(); }

 private:
  [[nodiscard]] int page_error() const { return on_pages ? on_pages() : 0; }

  Os& inner_;
};

}  // namespace modelbroker::testing
