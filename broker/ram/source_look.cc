#include "broker/ram/source_look.h"

#include <fcntl.h>

#include <chrono>
#include <thread>

#include "broker/workers/source_access.h"
#include "shm/text.h"

namespace modelbroker {
namespace {

// File clocks tick every few milliseconds: what was written within the tick of our look could be written again
// within it and look the same. And stores through a mapping change no time while their page is dirty: so where
// somebody may write, the pages are first made clean, and the file must look alike before and a tick after. Whoever
// stalls for less in the midst of writing is noticed either way.
constexpr std::chrono::milliseconds kFileClockTick{10};
constexpr int kLooks = 8;

bool settled(std::int64_t time_ns) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const auto age = now - std::chrono::nanoseconds(time_ns);
  return age < std::chrono::nanoseconds(0) || age > kFileClockTick;
}

Result<FileIdentity> settled_identity(Os& os, int file, const std::string& label) {
  auto source = identify(os, file, label);
  bool only_ctime = true;
  for (int look = 0; look < kLooks && source; ++look) {
    const bool writer = os.may_have_writer(file);
    if (writer) {
      os.clean_pages(file);
      std::this_thread::sleep_for(kFileClockTick);
    }
    auto again = identify(os, file, label);
    if (!again || (settled(again->ctime_ns) && (!writer || *again == *source))) return again;
    if (!writer) std::this_thread::sleep_for(kFileClockTick);
    only_ctime = only_ctime && again->alike(*source);
    source = again;
  }
  // A file system that says "now" each time, or somebody who changes rights or links: nobody writes it, and the loader
  // reads it twice.
  if (!source || (only_ctime && settled(source->mtime_ns))) return source;
  return fail(ErrorCode::kDataLoss, "'" + label + "' is being written: load it again when its writer has finished");
}

// With our own rights, for those who have them too.
Result<Fd> open_for_ourselves(Os& os, const std::string& path) {
  auto opened = os.open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0);
  if (!opened) return fail_errno(opened.error().number, "opening '" + printable(path) + "'");
  return std::move(*opened);
}

// The broker is nobody's deputy: beneath the model folders, and only what the peer could read itself. The one answer
// to all else, so that nobody learns what is there.
Result<Fd> open_for_member(Os& os, const std::vector<std::string>& folders, const Peer& peer, const std::string& path) {
  std::optional<Fd> file = open_in_folders(os, folders, path);
  if (file && could_read(os, file->get(), peer)) return std::move(*file);
  return fail(ErrorCode::kPermissionDenied,
              "uid " + std::to_string(peer.uid) + " may not load '" + printable(path) +
                  "' by its path: it is no file in the broker's model folders that this user can read; hand in "
                  "the file itself, as 'modelbroker load' and the clients' load() do");
}

bool leads_to(Os& os, const std::vector<std::string>& folders, const std::string& path, const Fd& file) {
  const std::optional<Fd> there = open_in_folders(os, folders, path);
  if (!there) return false;
  const auto seen = os.fstat(there->get()), told = os.fstat(file.get());
  return seen && told && seen->st_dev == told->st_dev && seen->st_ino == told->st_ino;
}

}  // namespace

Result<Look> look_at_source(Os& os, const LookOrder& order, Fd& file) {
  Look look;
  look.is_label = file && !order.everything && !leads_to(os, order.folders, order.path, file);
  if (!file) {
    MODELBROKER_ASSIGN(file, order.everything ? open_for_ourselves(os, order.path)
                                              : open_for_member(os, order.folders, order.peer, order.path));
  }
  MODELBROKER_ASSIGN(look.source, settled_identity(os, file.get(), printable(order.path)));
  if (const auto found = os.fstat(file.get())) look.uid = found->st_uid;
  look.is_private = order.group && !could_read(os, file.get(), *order.group);
  return look;
}

}  // namespace modelbroker
