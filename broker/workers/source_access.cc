#include "broker/workers/source_access.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <deque>
#include <sstream>
#include <variant>

namespace modelbroker {
namespace {

constexpr uid_t kNobody = static_cast<uid_t>(-1);  // no file's owner
constexpr int kMostLinks = 40;                     // the kernel's own number
constexpr int kLook = O_PATH | O_CLOEXEC;          // opens nothing: a device or fifo does not notice

std::string own_path(int fd) { return "/proc/self/fd/" + std::to_string(fd); }

bool allows(const struct stat& found, const Peer& peer, mode_t wanted) {
  const bool in_group = std::ranges::find(peer.groups, found.st_gid) != peer.groups.end();
  const unsigned shift = found.st_uid == peer.uid ? 6 : in_group ? 3 : 0;
  return (found.st_mode >> shift & wanted) == wanted;
}

// ---- the way through model folders

using Names = std::deque<std::string>;

Names names_of(const std::string& path) {
  Names names;
  std::istringstream rest(path);
  for (std::string name; std::getline(rest, name, '/');) {
    if (!name.empty() && name != ".") names.push_back(name);
  }
  return names;
}

std::string joined(const Names& names) {
  std::string path;
  for (const std::string& name : names) path += "/" + name;
  return path;
}

class Way {
 public:
  Way(Os& os, const std::vector<std::string>& folders) : os_(os), folders_(folders) {}

  [[nodiscard]] std::optional<Fd> open(Names path) {
    while (links_ <= kMostLinks) {
      const Names folder = folder_of(path);
      if (folder.empty() || folder.size() == path.size()) return std::nullopt;
      const auto root = os_.open(joined(folder), kLook | O_DIRECTORY, 0);
      if (!root) return std::nullopt;
      const Names rest(path.begin() + static_cast<std::ptrdiff_t>(folder.size()), path.end());
      // At once; where a link leads out of the folder, or the kernel cannot do that, name by name.
      if (const auto file = os_.open_beneath(root->get(), joined(rest).substr(1), kLook)) return regular(*file);
      auto end = walk(*root, folder, rest);
      if (auto* const file = std::get_if<Fd>(&end)) return regular(*file);
      path = std::get<Names>(end);
      ++links_;
    }
    return std::nullopt;
  }

 private:
  // The longest that `path` begins with.
  [[nodiscard]] Names folder_of(const Names& path) const {
    Names best;
    for (const std::string& folder : folders_) {
      const Names names = names_of(folder);
      const bool begins = names.size() <= path.size() && std::equal(names.begin(), names.end(), path.begin());
      if (begins && names.size() > best.size()) best = names;
    }
    return best;
  }

  // What is at the end, or the path at which to begin again; empty names: nothing is there.
  [[nodiscard]] std::variant<Fd, Names> walk(const Fd& root, const Names& folder, Names rest) {
    std::vector<Fd> trail;
    while (!rest.empty()) {
      const std::string name = std::move(rest.front());
      rest.pop_front();
      if (name == "..") {
        if (trail.empty()) return spliced(Names(folder.begin(), std::prev(folder.end())), rest);
        trail.pop_back();
        continue;
      }
      auto next = os_.openat(trail.empty() ? root.get() : trail.back().get(), name, kLook | O_NOFOLLOW);
      const auto found = next ? os_.fstat(next->get()) : tl::unexpected(next.error());
      if (!found) return Names();
      if (S_ISLNK(found->st_mode)) {
        const auto target = os_.readlink(next->get(), "");
        if (!target || target->empty() || ++links_ > kMostLinks) return Names();
        Names names = spliced(names_of(*target), rest);
        if (target->front() == '/') return names;
        rest = std::move(names);
        continue;
      }
      if (rest.empty()) return std::move(*next);
      if (!S_ISDIR(found->st_mode)) return Names();
      trail.push_back(std::move(*next));
    }
    return Names();
  }

  [[nodiscard]] static Names spliced(Names first, const Names& rest) {
    first.insert(first.end(), rest.begin(), rest.end());
    return first;
  }

  // Reads what was looked at, and not what may have come in its place.
  [[nodiscard]] std::optional<Fd> regular(const Fd& looked_at) {
    const auto found = os_.fstat(looked_at.get());
    if (!found || !S_ISREG(found->st_mode)) return std::nullopt;
    auto file = os_.open(own_path(looked_at.get()), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0);
    if (!file) return std::nullopt;
    return std::move(*file);
  }

  Os& os_;
  const std::vector<std::string>& folders_;
  int links_ = 0;
};

}  // namespace

bool could_read(Os& os, int fd, const Peer& peer) {
  const auto file = os.fstat(fd);
  auto path = os.readlink(AT_FDCWD, own_path(fd));
  if (!file || !path || !path->starts_with('/') || !allows(*file, peer, S_IROTH) || os.has_acl(*path)) return false;
  const auto seen = os.lstat(*path);
  if (!seen || seen->st_dev != file->st_dev || seen->st_ino != file->st_ino) return false;
  while (path->size() > 1) {
    path->resize(std::max<std::size_t>(path->rfind('/'), 1));
    const auto folder = os.lstat(*path);
    if (!folder || !S_ISDIR(folder->st_mode) || !allows(*folder, peer, S_IXOTH) || os.has_acl(*path)) return false;
  }
  return true;
}

bool could_read(Os& os, int fd, gid_t group) { return could_read(os, fd, Peer{kNobody, 0, {group}}); }

std::optional<Fd> open_in_folders(Os& os, const std::vector<std::string>& folders, const std::string& path) {
  return Way(os, folders).open(names_of(path));
}

}  // namespace modelbroker
