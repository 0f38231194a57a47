// FaultyOs: an Os that fails one call of the many, whichever it is.
//
// fail_at(k, errno) makes the k-th call from then on fail (and all later ones too, if `persistent`)
// without doing anything; only_calls() counts some calls alone. What cannot fail (unreserve, clocks) is passed on
// and not counted. Another way to choose may be had by overriding failing().
// Threads: any number, the count is atomic; fail_at() and only_calls() while no call is under way.
#pragma once

#include <atomic>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

#include "shm/os.h"

namespace modelbroker::testing {

class FaultyOs : public Os {
 public:
  explicit FaultyOs(Os& inner) : inner_(inner) {}

  void fail_at(std::uint64_t call, int error_number, bool persistent = false) noexcept {
    error_number_ = error_number;
    persistent_ = persistent;
    calls_ = 0;
    failed_ = 0;
    first_failed_ = "";
    failing_ = call;
  }
  void stop_failing() noexcept { failing_ = kNever; }
  // ",open,fstat,": these are counted and may fail; empty: every call.
  void only_calls(std::string calls) { only_ = std::move(calls); }
  // Calls since fail_at(), whether one of them was made to fail, and which was the first.
  [[nodiscard]] std::uint64_t calls() const noexcept { return calls_; }
  [[nodiscard]] bool failed_one() const noexcept { return failed_ > 0; }
  [[nodiscard]] std::string first_failed() const { return first_failed_.load(); }

  const OsFeatures& features() const noexcept override { return inner_.features(); }
  SysResult<Fd> open(const std::string& path, int flags, mode_t mode) override {
    if (const int error = failing("open")) return failure(error);
    return inner_.open(path, flags, mode);
  }
  SysResult<Fd> openat(int folder, const std::string& name, int flags) override {
    if (const int error = failing("openat")) return failure(error);
    return inner_.openat(folder, name, flags);
  }
  SysResult<Fd> open_beneath(int folder, const std::string& path, int flags) override {
    if (const int error = failing("open_beneath")) return failure(error);
    return inner_.open_beneath(folder, path, flags);
  }
  SysResult<std::string> readlink(int folder, const std::string& name) override {
    if (const int error = failing("readlink")) return failure(error);
    return inner_.readlink(folder, name);
  }
  SysResult<int> open_flags(int fd) override {
    if (const int error = failing("open_flags")) return failure(error);
    return inner_.open_flags(fd);
  }
  SysResult<struct stat> fstat(int fd) override {
    if (const int error = failing("fstat")) return failure(error);
    return inner_.fstat(fd);
  }
  SysResult<struct stat> lstat(const std::string& path) override {
    if (const int error = failing("lstat")) return failure(error);
    return inner_.lstat(path);
  }
  SysResult<struct statfs> statfs(const std::string& path) override {
    if (const int error = failing("statfs")) return failure(error);
    return inner_.statfs(path);
  }
  SysResult<Fd> memory_file(const std::string& name) override {
    if (const int error = failing("memory_file")) return failure(error);
    return inner_.memory_file(name);
  }
  SysResult<void> add_seals(int fd, int seals) override {
    if (const int error = failing("add_seals")) return failure(error);
    return inner_.add_seals(fd, seals);
  }
  SysResult<int> seals_of(int fd) override {
    if (const int error = failing("seals_of")) return failure(error);
    return inner_.seals_of(fd);
  }
  SysResult<void> ftruncate(int fd, std::uint64_t size) override {
    if (const int error = failing("ftruncate")) return failure(error);
    return inner_.ftruncate(fd, size);
  }
  SysResult<void> fallocate(int fd, std::uint64_t offset, std::uint64_t size) override {
    if (const int error = failing("fallocate")) return failure(error);
    return inner_.fallocate(fd, offset, size);
  }
  SysResult<void> fchmod(int fd, mode_t mode) override {
    if (const int error = failing("fchmod")) return failure(error);
    return inner_.fchmod(fd, mode);
  }
  SysResult<void> fchgrp(int fd, gid_t group) override {
    if (const int error = failing("fchgrp")) return failure(error);
    return inner_.fchgrp(fd, group);
  }
  SysResult<void> give_to_group(const std::string& path, gid_t group, mode_t mode) override {
    if (const int error = failing("give_to_group")) return failure(error);
    return inner_.give_to_group(path, group, mode);
  }
  bool has_acl(const std::string& path) noexcept override { return inner_.has_acl(path); }
  SysResult<void> mkdir(const std::string& path, mode_t mode) override {
    if (const int error = failing("mkdir")) return failure(error);
    return inner_.mkdir(path, mode);
  }
  SysResult<void> unlink(const std::string& path) override {
    if (const int error = failing("unlink")) return failure(error);
    return inner_.unlink(path);
  }
  SysResult<void> rename_noreplace(const std::string& from, const std::string& to) override {
    if (const int error = failing("rename_noreplace")) return failure(error);
    return inner_.rename_noreplace(from, to);
  }
  SysResult<std::size_t> pread(int fd, std::span<std::byte> into, std::uint64_t offset) override {
    if (const int error = failing("pread")) return failure(error);
    return inner_.pread(fd, into, offset);
  }
  SysResult<std::vector<std::string>> list_directory(const std::string& path) override {
    if (const int error = failing("list_directory")) return failure(error);
    return inner_.list_directory(path);
  }
  SysResult<std::string> read_text(const std::string& path) override {
    if (const int error = failing("read_text")) return failure(error);
    return inner_.read_text(path);
  }
  SysResult<std::uint64_t> cached_bytes(int fd, std::uint64_t offset, std::uint64_t size) override {
    if (const int error = failing("cached_bytes")) return failure(error);
    return inner_.cached_bytes(fd, offset, size);
  }
  SysResult<void> lock_exclusive(int fd) override {
    if (const int error = failing("lock_exclusive")) return failure(error);
    return inner_.lock_exclusive(fd);
  }
  SysResult<void> lock_shared(int fd) override {
    if (const int error = failing("lock_shared")) return failure(error);
    return inner_.lock_shared(fd);
  }
  SysResult<bool> nobody_else_has_it(int fd) override {
    if (const int error = failing("nobody_else_has_it")) return failure(error);
    return inner_.nobody_else_has_it(fd);
  }
  bool may_have_writer(int fd) noexcept override { return inner_.may_have_writer(fd); }
  void clean_pages(int fd) noexcept override { inner_.clean_pages(fd); }
  SysResult<void*> reserve(std::size_t size, std::size_t alignment) override {
    if (const int error = failing("reserve")) return failure(error);
    return inner_.reserve(size, alignment);
  }
  void unreserve(void* address, std::size_t size) noexcept override { inner_.unreserve(address, size); }
  SysResult<void> advise(void* address, std::size_t size, int advice) override {
    if (const int error = failing("advise")) return failure(error);
    return inner_.advise(address, size, advice);
  }
  SysResult<Fd> listen_seqpacket(const std::string& path, mode_t mode) override {
    if (const int error = failing("listen_seqpacket")) return failure(error);
    return inner_.listen_seqpacket(path, mode);
  }
  SysResult<Fd> connect_seqpacket(const std::string& path, std::chrono::milliseconds most) override {
    if (const int error = failing("connect_seqpacket")) return failure(error);
    return inner_.connect_seqpacket(path, most);
  }
  SysResult<Fd> accept(int listener) override {
    if (const int error = failing("accept")) return failure(error);
    return inner_.accept(listener);
  }
  SysResult<ucred> peer_credentials(int socket) override {
    if (const int error = failing("peer_credentials")) return failure(error);
    return inner_.peer_credentials(socket);
  }
  SysResult<std::vector<gid_t>> peer_groups(int socket) override {
    if (const int error = failing("peer_groups")) return failure(error);
    return inner_.peer_groups(socket);
  }
  SysResult<Fd> peer_pidfd(int socket) override {
    if (const int error = failing("peer_pidfd")) return failure(error);
    return inner_.peer_pidfd(socket);
  }
  SysResult<Fd> pidfd_open(pid_t pid) override {
    if (const int error = failing("pidfd_open")) return failure(error);
    return inner_.pidfd_open(pid);
  }
  SysResult<Packet> receive(int socket, std::size_t limit, std::size_t fd_limit) override {
    if (const int error = failing("receive")) return failure(error);
    return inner_.receive(socket, limit, fd_limit);
  }
  SysResult<void> send(int socket, std::span<const std::byte> bytes, std::span<const int> descriptors) override {
    if (const int error = failing("send")) return failure(error);
    return inner_.send(socket, bytes, descriptors);
  }
  SysResult<Fd> epoll_create() override {
    if (const int error = failing("epoll_create")) return failure(error);
    return inner_.epoll_create();
  }
  SysResult<void> epoll_add(int epoll, int fd, std::uint32_t events, std::uint64_t key) override {
    if (const int error = failing("epoll_add")) return failure(error);
    return inner_.epoll_add(epoll, fd, events, key);
  }
  SysResult<void> epoll_remove(int epoll, int fd) override {
    if (const int error = failing("epoll_remove")) return failure(error);
    return inner_.epoll_remove(epoll, fd);
  }
  SysResult<std::vector<Ready>> epoll_poll(int epoll, std::size_t most) override {
    if (const int error = failing("epoll_poll")) return failure(error);
    return inner_.epoll_poll(epoll, most);
  }
  SysResult<Fd> event_fd() override {
    if (const int error = failing("event_fd")) return failure(error);
    return inner_.event_fd();
  }
  void event_fd_signal(int fd) noexcept override { inner_.event_fd_signal(fd); }
  void event_fd_drain(int fd) noexcept override { inner_.event_fd_drain(fd); }
  SysResult<Fd> signal_fd(std::span<const int> signals) override {
    if (const int error = failing("signal_fd")) return failure(error);
    return inner_.signal_fd(signals);
  }
  SysResult<int> read_signal(int fd) override {
    if (const int error = failing("read_signal")) return failure(error);
    return inner_.read_signal(fd);
  }
  SysResult<Fd> inotify_create() override {
    if (const int error = failing("inotify_create")) return failure(error);
    return inner_.inotify_create();
  }
  SysResult<int> inotify_watch_close(int inotify, const std::string& path) override {
    if (const int error = failing("inotify_watch_close")) return failure(error);
    return inner_.inotify_watch_close(inotify, path);
  }
  SysResult<void> inotify_unwatch(int inotify, int watch) override {
    if (const int error = failing("inotify_unwatch")) return failure(error);
    return inner_.inotify_unwatch(inotify, watch);
  }
  SysResult<std::vector<int>> inotify_read(int inotify) override {
    if (const int error = failing("inotify_read")) return failure(error);
    return inner_.inotify_read(inotify);
  }
  std::uint64_t boottime_ns() noexcept override { return inner_.boottime_ns(); }
  uid_t uid() noexcept override { return inner_.uid(); }

 protected:
  // The errno that this call, named as its method, is to fail with; 0 lets it through.
  [[nodiscard]] virtual int failing(const char* call) noexcept {
    if (!only_.empty() && only_.find("," + std::string(call) + ",") == std::string::npos) return 0;
    const std::uint64_t number = ++calls_;
    if (persistent_ ? number < failing_ : number != failing_) return 0;
    if (failed_++ == 0) first_failed_ = call;
    return error_number_;
  }

 private:
  static constexpr std::uint64_t kNever = std::numeric_limits<std::uint64_t>::max();

  [[nodiscard]] static tl::unexpected<Errno> failure(int error) { return tl::unexpected(Errno{error}); }

  Os& inner_;
  std::string only_;
  std::atomic<std::uint64_t> calls_{0}, failed_{0};
  std::atomic<std::uint64_t> failing_{kNever};
  std::atomic<const char*> first_failed_{""};
  int error_number_ = 0;
  bool persistent_ = false;
};

}  // namespace modelbroker::testing
