#include "broker/doors/gate.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <exception>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "broker/base/log.h"

namespace modelbroker {
namespace {

constexpr std::size_t kMostConnections = 16384;  // descriptors of them: memory has an end as well
constexpr std::chrono::milliseconds kBetweenLooks{50};
constexpr std::chrono::milliseconds kBreath{10};
constexpr std::chrono::seconds kBetweenWarnings{1};

int really_accept(int listener, sockaddr* address, socklen_t* size, int flags) noexcept {
  return static_cast<int>(::syscall(SYS_accept4, listener, address, size, flags));
}

Fd spare_descriptor() { return Fd(::open("/dev/null", O_RDONLY | O_CLOEXEC)); }

int option_of(int socket, int name) {
  int value = 0;
  socklen_t size = sizeof value;
  return ::getsockopt(socket, SOL_SOCKET, name, &value, &size) == 0 ? value : -1;
}

// As high as it goes; then the limit that holds.
std::size_t raise_descriptor_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return 256;
  const rlimit wanted{limit.rlim_max, limit.rlim_max};
  if (::setrlimit(RLIMIT_NOFILE, &wanted) == 0) limit = wanted;
  return static_cast<std::size_t>(std::min<rlim_t>(limit.rlim_cur, 1U << 30U));
}

}  // namespace

Gate& Gate::get() {
  static Gate gate;
  return gate;
}

Gate::Gate() : spare_(spare_descriptor()) {}

void Gate::open(Os& os, const Rights& rights) {
  const std::size_t limit = raise_descriptor_limit();
  const std::lock_guard lock(mutex_);
  const Fd lowest = spare_descriptor();
  const auto in_use = static_cast<std::size_t>(std::max(lowest.get(), 0));
  const std::size_t reserve = std::clamp<std::size_t>(limit / 4, 32, 1024);
  const std::size_t end = limit - std::min(limit, reserve);
  first_of_reserve_ = static_cast<int>(end);
  // The rest is for what those who are connected hand in.
  all_ = std::min((end - std::min(end, in_use)) / 4 * 3, kMostConnections);
  os_ = &os;
  rights_ = rights;
}

void Gate::close() noexcept {
  const std::lock_guard lock(mutex_);
  rights_.reset();
  os_ = nullptr;
}

// Under the lock from the start, so that nobody who accepts takes the place that the spare gave up.
int Gate::accept(int listener, sockaddr* address, socklen_t* size, int flags) noexcept {
  Fd refused;
  bool nobody_went = false;
  {
    const std::lock_guard lock(mutex_);
    Fd taken(really_accept(listener, address, size, flags));
    const int error = errno;
    if (!taken && error != EMFILE && error != ENFILE && error != ENOBUFS && error != ENOMEM) return -1;
    const char* why = "descriptors have run out";
    if (taken) {
      try {
        why = refusal(taken.get());
      } catch (const std::exception&) {
        why = "memory has run out";
      }
    } else {
      nobody_went = !turn_away_one(listener);
    }
    if (why == nullptr) return taken.release();
    warn(why);
    refused = std::move(taken);
  }
  // Who waits at the listener would wake us at once again.
  if (nobody_went) std::this_thread::sleep_for(kBreath);
  refused.reset();
  errno = ECONNABORTED;
  return -1;
}

// With the spare's number: then nobody waits there for ever.
bool Gate::turn_away_one(int listener) noexcept {
  spare_.reset();
  Fd turned_away(really_accept(listener, nullptr, nullptr, SOCK_CLOEXEC));
  const bool went = static_cast<bool>(turned_away);
  turned_away.reset();
  spare_ = spare_descriptor();
  return went;
}

// Why this connection is not taken; nothing: it is, and is in the books.
const char* Gate::refusal(int fd) {
  if (!rights_) return nullptr;
  if (fd >= first_of_reserve_) return "descriptors come to an end";
  if (option_of(fd, SO_DOMAIN) != AF_UNIX) return nullptr;
  const auto credentials = os_->peer_credentials(fd);
  if (!credentials) return "the kernel does not say whose it is";
  Peer peer{credentials->uid, credentials->pid, {credentials->gid}};
  if (const auto others = os_->peer_groups(fd)) peer.groups.insert(peer.groups.end(), others->begin(), others->end());
  if (!rights_->enter(peer)) return "its user is none of those who are served";
  struct stat found {};
  if (::fstat(fd, &found) != 0) return "it cannot be looked at";
  forget(fd);  // the number was somebody else's before
  // A session has a pidfd beside its connection.
  const std::size_t cost = option_of(fd, SO_TYPE) == SOCK_SEQPACKET ? 2 : 1;
  if (!has_room(peer.uid, cost)) forget_closed();
  if (!has_room(peer.uid, cost)) return "there are too many";
  connections_[fd] = {found.st_ino, peer.uid, cost};
  used_[peer.uid] += cost;
  used_by_all_ += cost;
  if (!rights_->everything(peer.uid)) used_by_members_ += cost;
  return nullptr;
}

// A member has a quarter, all members together three.
bool Gate::has_room(uid_t uid, std::size_t cost) const {
  if (used_by_all_ + cost > all_) return false;
  if (rights_->everything(uid)) return true;
  const auto used = used_.find(uid);
  return (used == used_.end() ? 0 : used->second) + cost <= all_ / 4 && used_by_members_ + cost <= all_ / 4 * 3;
}

void Gate::forget(int fd) {
  const auto found = connections_.find(fd);
  if (found == connections_.end()) return;
  const Connection& gone = found->second;
  used_by_all_ -= gone.cost;
  if (!rights_->everything(gone.uid)) used_by_members_ -= gone.cost;
  const auto used = used_.find(gone.uid);
  used->second -= gone.cost;
  if (used->second == 0) used_.erase(used);
  connections_.erase(found);
}

// Nobody tells us what libzmq closed: looked at when it matters, and not too often.
void Gate::forget_closed() {
  const auto now = std::chrono::steady_clock::now();
  if (now - looked_ < kBetweenLooks) return;
  looked_ = now;
  std::vector<int> closed;
  for (const auto& [fd, connection] : connections_) {
    struct stat found {};
    const bool same = ::fstat(fd, &found) == 0 && S_ISSOCK(found.st_mode) && found.st_ino == connection.socket;
    if (!same) closed.push_back(fd);
  }
  for (const int fd : closed) forget(fd);
}

void Gate::warn(const char* why) noexcept {
  ++unsaid_;
  const auto now = std::chrono::steady_clock::now();
  if (now - warned_ < kBetweenWarnings) return;
  warned_ = now;
  try {
    log_warning("refused " + std::to_string(std::exchange(unsaid_, 0)) + " connections, the last because " + why);
  } catch (const std::exception&) {
    return;  // no memory for a line of the log
  }
}

bool Gate::in_reserve(int fd) const noexcept {
  const std::lock_guard lock(mutex_);
  return rights_ && fd >= first_of_reserve_;
}

std::size_t Gate::share() const noexcept {
  const std::lock_guard lock(mutex_);
  return all_ / 4;
}

}  // namespace modelbroker

// Takes the place of the C library's for every caller in the process.
extern "C" __attribute__((visibility("default"))) int accept4(int listener, sockaddr* address, socklen_t* size,
                                                              int flags) {
  return modelbroker::Gate::get().accept(listener, address, size, flags);
}
