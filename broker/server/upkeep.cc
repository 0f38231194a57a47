// What a living broker needs in its folders, looked at once a second: what a cleaner or a user removed is made again.
#include <cerrno>
#include <string>
#include <utility>

#include "broker/base/log.h"
#include "broker/server/server.h"

namespace modelbroker {
namespace {

constexpr std::chrono::seconds kLookInterval{1}, kLookIntervalAfterFailure{10};

}  // namespace

std::array<std::string, 3> Server::sockets() const {
  return {endpoint_.broker_path(), endpoint_.events_path(), endpoint_.fds()};
}

// Of a broker that died: ours to remove, for we hold its locks.
Result<void> Server::remove_stale_sockets() {
  for (const std::string& path : sockets()) {
    if (auto gone = books_->os.unlink(path); !gone && gone.error().number != ENOENT) {
      return fail_errno(gone.error().number, "removing '" + path + "', which a broker that died has left");
    }
  }
  return {};
}

// It is open now.
void Server::add_door(const std::string& path, std::function<Result<void>()> open) {
  doors_.push_back({path, std::move(open), FileMark::of(books_->os, path)});
}

// The folder and the locks: ours again if they were removed. If another broker has taken them meanwhile, this one ends
// and leaves all to it: two would free each other's blocks.
Result<void> Server::hold_place() {
  if (displaced_) return tl::unexpected(*displaced_);
  Result<void> held;
  if (const auto again = run_directory_.look(books_->os); !again) {
    held = tl::unexpected(again.error());
  } else if (*again) {
    log_warning("the run directory '" + run_directory_.path() +
                "' was removed or replaced while this broker ran: made again; containers that have the old folder "
                "mounted must be restarted");
  }
  for (LockFile* const lock : {&run_lock_, &books_->directory.lock_file()}) {
    if (auto locked = hold_lock(*lock); !locked) held = std::move(locked);
    if (displaced_) break;
  }
  return held;
}

Result<void> Server::hold_lock(LockFile& lock) {
  const auto again = lock.look(books_->os);
  if (again && *again) log_warning("somebody removed the lock '" + lock.path() + "': made again");
  if (again) return {};
  if (LockFile::is_held(again.error())) {
    displaced_ = again.error();
    displaced_->message = "the lock was removed while this broker ran, and " + displaced_->message;
    log_error(displaced_->message + "; this one ends, and leaves its blocks to that one");
    loop_->stop();
    return tl::unexpected(*displaced_);
  }
  return fail(again.error().code, "the lock '" + lock.path() + "' was removed: " + again.error().message);
}

// In the order of their first opening: a client that can connect at the last can use all.
Result<void> Server::hold_doors() {
  for (Door& door : doors_) {
    if (door.mark.in_place(books_->os)) continue;
    (void)books_->os.unlink(door.path);  // another file in its place; the folder is ours
    MODELBROKER_TRY(door.open());
    MODELBROKER_TRY(open_socket_to_group(books_->os, door.path, books_->rights.group()));
    door.mark = FileMark::of(books_->os, door.path);
    log_warning(
        "the socket '" + door.path +
        "' was removed or replaced while this broker ran: made again; connected clients were not disturbed, new "
        "ones could not connect meanwhile. If a cleaner did it, exclude '" +
        run_directory_.path() + "' from it");
  }
  return {};
}

void Server::look_at_place() {
  auto held = hold_place();
  if (displaced_) return;
  if (held) held = hold_doors();
  if (!held) log_error(held.error().message + "; tried again in 10 s");
  keeper_->look();
  loop_->after(held ? kLookInterval : kLookIntervalAfterFailure, [this] { look_at_place(); });
}

void Server::remove_doors() {
  for (const Door& door : doors_) {
    if (!displaced_ && door.mark.in_place(books_->os)) (void)books_->os.unlink(door.path);
  }
}

}  // namespace modelbroker
