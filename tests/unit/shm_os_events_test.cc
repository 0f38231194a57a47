// Sockets and events of the Os on Linux.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>

#include "shm/os.h"
#include "tests/support/child.h"
#include "tests/support/few_descriptors.h"
#include "tests/support/temp_directory.h"
#include "tests/support/watchdog.h"

namespace modelbroker {
namespace {

using testing::Child;
using testing::FewDescriptors;
using testing::lowest_descriptor;
using testing::TempDirectory;
using testing::Watchdog;

std::vector<std::byte> bytes_of(std::string_view text) {
  const auto* const begin = reinterpret_cast<const std::byte*>(text.data());
  return {begin, begin + text.size()};
}

bool readable(int fd) {
  pollfd poll{fd, POLLIN, 0};
  return ::poll(&poll, 1, 60'000) == 1;
}

class OsEventsTest : public ::testing::Test {
 protected:
  // A file of `text`, open for reading and writing.
  Fd make_file(const std::string& name, std::string_view text = "") {
    auto fd = os_->open(folder_ / name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    EXPECT_TRUE(fd);
    EXPECT_EQ(::write(fd->get(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
    return std::move(*fd);
  }

  Watchdog watchdog_;
  TempDirectory folder_;
  const std::unique_ptr<Os> os_ = make_os({folder_.path(), ""});
};

// ---- sockets

constexpr std::chrono::seconds kLongest{60};

TEST_F(OsEventsTest, SendsPacketsWithDescriptors) {
  const std::string path = folder_ / "s";
  const Fd listener = os_->listen_seqpacket(path, 0600).value();
  EXPECT_EQ(os_->lstat(path)->st_mode & 0777U, 0600U);
  EXPECT_EQ(os_->accept(listener.get()).error().number, EAGAIN);
  const Fd client = os_->connect_seqpacket(path, kLongest).value();
  const Fd server = os_->accept(listener.get()).value();
  EXPECT_EQ(os_->receive(server.get(), 100, 2).error().number, EAGAIN);

  make_file("f", "in the file");
  const Fd file = os_->open(folder_ / "f", O_RDONLY | O_CLOEXEC, 0).value();
  const std::vector<int> descriptors{file.get(), file.get()};
  ASSERT_TRUE(os_->send(client.get(), bytes_of("hello"), descriptors));
  const Os::Packet packet = os_->receive(server.get(), 100, 2).value();
  EXPECT_EQ(packet.bytes, bytes_of("hello"));
  ASSERT_EQ(packet.descriptors.size(), 2U);
  std::vector<std::byte> text(11);
  EXPECT_EQ(os_->pread(packet.descriptors[1].get(), text, 0).value(), 11U);
  EXPECT_EQ(text, bytes_of("in the file"));
  EXPECT_EQ(::fcntl(packet.descriptors[0].get(), F_GETFD), FD_CLOEXEC);

  ASSERT_TRUE(os_->send(server.get(), bytes_of("back"), {}));
  EXPECT_EQ(os_->receive(client.get(), 100, 0)->bytes, bytes_of("back"));
}

std::size_t open_descriptors(Os& os) { return os.list_directory("/proc/self/fd")->size(); }

TEST_F(OsEventsTest, RefusesPacketsThatAreTooLargeAndClosesWhatCame) {
  const Fd listener = os_->listen_seqpacket(folder_ / "s", 0600).value();
  const Fd client = os_->connect_seqpacket(folder_ / "s", kLongest).value();
  const Fd server = os_->accept(listener.get()).value();
  const std::size_t before = open_descriptors(*os_);
  ASSERT_TRUE(os_->send(client.get(), bytes_of("hello"), {}));
  EXPECT_EQ(os_->receive(server.get(), 4, 0).error().number, EMSGSIZE);
  for (const std::size_t count : {2UL, 64UL, 65UL, 200UL}) {
    const std::vector<int> many(count, client.get());
    ASSERT_TRUE(os_->send(client.get(), bytes_of("hello"), many));
    EXPECT_EQ(os_->receive(server.get(), 100, 1).error().number, EMSGSIZE);
  }
  const std::vector<int> too_many(65, client.get());  // 64 arrive, and the kernel says that there were more
  ASSERT_TRUE(os_->send(client.get(), bytes_of("hello"), too_many));
  EXPECT_EQ(os_->receive(server.get(), 100, 64).error().number, EMSGSIZE);
  EXPECT_EQ(open_descriptors(*os_), before);
  ASSERT_TRUE(os_->send(client.get(), bytes_of("still works"), {}));
  EXPECT_EQ(os_->receive(server.get(), 100, 1)->bytes, bytes_of("still works"));
}

TEST_F(OsEventsTest, TellsOfDescriptorsThatItMayNotOpen) {
  const Fd listener = os_->listen_seqpacket(folder_ / "s", 0600).value();
  const Fd client = os_->connect_seqpacket(folder_ / "s", kLongest).value();
  const Fd server = os_->accept(listener.get()).value();
  const std::vector<int> two(2, client.get());
  for (const unsigned left : {0U, 1U}) {
    ASSERT_TRUE(os_->send(client.get(), bytes_of("hello"), two));
    const int lowest = lowest_descriptor();
    {
      const FewDescriptors few(left);
      EXPECT_EQ(os_->receive(server.get(), 100, 4).error().number, EMFILE) << left;
    }
    EXPECT_EQ(lowest_descriptor(), lowest) << "what arrived was closed";
  }
}

TEST_F(OsEventsTest, TellsOfAPeerThatHungUp) {
  const Fd listener = os_->listen_seqpacket(folder_ / "s", 0600).value();
  Fd client = os_->connect_seqpacket(folder_ / "s", kLongest).value();
  const Fd server = os_->accept(listener.get()).value();
  client.reset();
  EXPECT_TRUE(os_->receive(server.get(), 100, 1)->bytes.empty());
  EXPECT_EQ(os_->send(server.get(), bytes_of("x"), {}).error().number, EPIPE);
}

TEST_F(OsEventsTest, RefusesSocketPathsThatAreTooLong) {
  const std::string path = folder_ / std::string(120, 'x');
  EXPECT_EQ(os_->listen_seqpacket(path, 0600).error().number, ENAMETOOLONG);
  EXPECT_EQ(os_->connect_seqpacket(path, kLongest).error().number, ENAMETOOLONG);
  EXPECT_EQ(os_->connect_seqpacket(folder_ / "absent", kLongest).error().number, ENOENT);
  const Fd listener = os_->listen_seqpacket(folder_ / "s", 0600).value();
  EXPECT_EQ(os_->listen_seqpacket(folder_ / "s", 0600).error().number, EADDRINUSE);
}

TEST_F(OsEventsTest, AConnectionThatNobodyTakesEndsInTime) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::ranges::copy(folder_ / "s", std::begin(address.sun_path));
  const Fd listener(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  ASSERT_EQ(::bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  ASSERT_EQ(::listen(listener.get(), 0), 0);
  std::vector<Fd> waiting;
  while (waiting.size() < 100) {
    auto client = os_->connect_seqpacket(folder_ / "s", std::chrono::milliseconds(50));
    if (!client) {
      EXPECT_EQ(client.error().number, EAGAIN);
      break;
    }
    waiting.push_back(std::move(*client));
  }
  EXPECT_LT(waiting.size(), 100U);
}

TEST_F(OsEventsTest, KnowsItsPeer) {
  const Fd listener = os_->listen_seqpacket(folder_ / "s", 0600).value();
  Child child([&](const Child::Parent& parent) {
    const auto client = os_->connect_seqpacket(folder_ / "s", kLongest);
    parent.say(client ? "connected" : "not connected");
    parent.wait();
    return 0;
  });
  ASSERT_EQ(child.hear(), "connected");
  const Fd server = os_->accept(listener.get()).value();
  const ucred credentials = os_->peer_credentials(server.get()).value();
  EXPECT_EQ(credentials.pid, child.pid());
  EXPECT_EQ(credentials.uid, os_->uid());

  auto by_socket = os_->peer_pidfd(server.get());
  auto by_number = os_->pidfd_open(child.pid());
  EXPECT_EQ(by_socket.has_value(), os_->features().peer_pidfd);
  EXPECT_EQ(by_number.has_value(), os_->features().pidfd);
  child.kill();
  EXPECT_TRUE(!by_socket || readable(by_socket->get()));
  EXPECT_TRUE(!by_number || readable(by_number->get()));

  const auto plain = make_plain_os();
  EXPECT_EQ(plain->peer_pidfd(server.get()).error().number, ENOTSUP);
  EXPECT_EQ(plain->pidfd_open(::getpid()).error().number, ENOSYS);
  EXPECT_FALSE(os_->peer_credentials(-1));
}

// ---- events

TEST_F(OsEventsTest, PollsWithoutWaiting) {
  const Fd epoll = os_->epoll_create().value();
  const Fd event = os_->event_fd().value();
  ASSERT_TRUE(os_->epoll_add(epoll.get(), event.get(), EPOLLIN, 0x1234567890abcdefULL));
  EXPECT_EQ(os_->epoll_add(epoll.get(), event.get(), EPOLLIN, 1).error().number, EEXIST);
  EXPECT_TRUE(os_->epoll_poll(epoll.get(), 8)->empty());
  os_->event_fd_signal(event.get());
  os_->event_fd_signal(event.get());
  const auto ready = os_->epoll_poll(epoll.get(), 8).value();
  ASSERT_EQ(ready.size(), 1U);
  EXPECT_EQ(ready[0].key, 0x1234567890abcdefULL);
  EXPECT_EQ(ready[0].events, static_cast<std::uint32_t>(EPOLLIN));
  os_->event_fd_drain(event.get());
  EXPECT_TRUE(os_->epoll_poll(epoll.get(), 8)->empty());
  os_->event_fd_drain(event.get());  // does not wait
  EXPECT_TRUE(os_->epoll_remove(epoll.get(), event.get()));
  EXPECT_EQ(os_->epoll_remove(epoll.get(), event.get()).error().number, ENOENT);
  EXPECT_FALSE(os_->epoll_poll(-1, 8));
}

TEST_F(OsEventsTest, TakesSignalsAsEvents) {
  Child child([&](const Child::Parent& parent) {
    const std::vector<int> signals{SIGUSR1, SIGHUP};
    const auto fd = os_->signal_fd(signals);
    if (!fd || os_->read_signal(fd->get()).error().number != EAGAIN) return 1;
    parent.say("ready");
    if (!readable(fd->get())) return 2;
    return os_->read_signal(fd->get()).value_or(0) == SIGHUP ? 0 : 3;
  });
  ASSERT_EQ(child.hear(), "ready");
  ASSERT_EQ(::kill(child.pid(), SIGHUP), 0);
  EXPECT_EQ(child.wait(), 0);
}

TEST_F(OsEventsTest, HearsWhenAFileIsClosed) {
  const Fd inotify = os_->inotify_create().value();
  make_file("f", "x");
  EXPECT_EQ(os_->inotify_watch_close(inotify.get(), folder_ / "absent").error().number, ENOENT);
  const int watch = os_->inotify_watch_close(inotify.get(), folder_ / "f").value();
  EXPECT_EQ(os_->inotify_read(inotify.get()).error().number, EAGAIN);
  Fd reader = os_->open(folder_ / "f", O_RDONLY | O_CLOEXEC, 0).value();
  EXPECT_EQ(os_->inotify_read(inotify.get()).error().number, EAGAIN);
  reader.reset();
  ASSERT_TRUE(readable(inotify.get()));
  EXPECT_EQ(os_->inotify_read(inotify.get()).value(), std::vector<int>{watch});
  EXPECT_TRUE(os_->inotify_unwatch(inotify.get(), watch));
  // The end of the watch is told too, and is no close.
  EXPECT_TRUE(os_->inotify_read(inotify.get())->empty());
  EXPECT_EQ(os_->inotify_unwatch(inotify.get(), watch).error().number, EINVAL);
}

}  // namespace
}  // namespace modelbroker
