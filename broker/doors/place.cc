#include "broker/doors/place.h"

#include <cerrno>

#include "broker/base/log.h"

namespace modelbroker {
namespace {

constexpr std::chrono::seconds kLookInterval{1}, kLookIntervalAfterFailure{10};

}  // namespace

// Of a broker that died: ours to remove, for we hold its locks.
Result<void> remove_stale_sockets(Os& os, std::span<const std::string> paths) {
  for (const std::string& path : paths) {
    if (auto gone = os.unlink(path); !gone && gone.error().number != ENOENT) {
      return fail_errno(gone.error().number, "removing '" + path + "', which a broker that died has left");
    }
  }
  return {};
}

// It is open now.
void Place::add_socket(const std::string& path, std::function<Result<void>()> open) {
  sockets_.push_back({path, std::move(open), FileMark::of(os_, path)});
}

// The folder and the locks: ours again if they were removed. If another broker has taken them meanwhile, this one ends
// and leaves all to it: two would free each other's blocks.
Result<void> Place::hold() {
  if (displaced_) return tl::unexpected(*displaced_);
  Result<void> held;
  if (const auto again = run_directory_.look(os_); !again) {
    held = tl::unexpected(again.error());
  } else if (*again) {
    log_warning("the run directory '" + run_directory_.path() +
                "' was removed or replaced while this broker ran: made again; containers that have the old folder "
                "mounted must be restarted");
  }
  for (LockFile* const lock : {&run_lock_, &ram_lock_}) {
    if (auto locked = hold_lock(*lock); !locked) held = std::move(locked);
    if (displaced_) break;
  }
  return held;
}

Result<void> Place::hold_lock(LockFile& lock) {
  const auto again = lock.look(os_);
  if (again && *again) log_warning("somebody removed the lock '" + lock.path() + "': made again");
  if (again) return {};
  if (LockFile::is_held(again.error())) {
    displaced_ = again.error();
    displaced_->message = "the lock was removed while this broker ran, and " + displaced_->message;
    log_error(displaced_->message + "; this one ends, and leaves its blocks to that one");
    loop_.stop();
    return tl::unexpected(*displaced_);
  }
  return fail(again.error().code, "the lock '" + lock.path() + "' was removed: " + again.error().message);
}

// In the order of their first opening: a client that can connect at the last can use all.
Result<void> Place::hold_sockets() {
  for (Socket& socket : sockets_) {
    if (socket.mark.in_place(os_)) continue;
    (void)os_.unlink(socket.path);  // another file in its place; the folder is ours
    MODELBROKER_TRY(socket.open());
    MODELBROKER_TRY(open_socket_to_group(os_, socket.path, group_));
    socket.mark = FileMark::of(os_, socket.path);
    log_warning(
        "the socket '" + socket.path +
        "' was removed or replaced while this broker ran: made again; connected clients were not disturbed, new "
        "ones could not connect meanwhile. If a cleaner did it, exclude '" +
        run_directory_.path() + "' from it");
  }
  return {};
}

void Place::keep() {
  auto held = hold();
  if (displaced_) return;
  if (held) held = hold_sockets();
  if (!held) log_error(held.error().message + "; tried again in 10 s");
  each_time_();
  loop_.after(held ? kLookInterval : kLookIntervalAfterFailure, [this] { keep(); });
}

void Place::remove_sockets() {
  for (const Socket& socket : sockets_) {
    if (!displaced_ && socket.mark.in_place(os_)) (void)os_.unlink(socket.path);
  }
}

}  // namespace modelbroker
