#include "cpp_client/refused.h"

#include <grp.h>
#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <vector>

namespace modelbroker::client {
namespace {

constexpr std::size_t kEntrySize = std::size_t{64} << 10;

struct User {
  std::string name;
  gid_t group = 0;
};

std::optional<User> user_of(uid_t uid) {
  std::vector<char> buffer(kEntrySize);
  passwd entry{};
  passwd* found = nullptr;
  const bool known = ::getpwuid_r(uid, &entry, buffer.data(), buffer.size(), &found) == 0 && found != nullptr;
  return known ? std::optional<User>({found->pw_name, found->pw_gid}) : std::nullopt;
}

// By number, where it has no name: usermod takes that too.
std::string group_name(gid_t gid) {
  std::vector<char> buffer(kEntrySize);
  group entry{};
  group* found = nullptr;
  const bool known = ::getgrgid_r(gid, &entry, buffer.data(), buffer.size(), &found) == 0 && found != nullptr;
  return known ? std::string(found->gr_name) : std::to_string(gid);
}

// By the machine's list, whatever this process was started with.
bool is_member(const User& user, gid_t gid) {
  std::vector<gid_t> groups(1024);
  int count = static_cast<int>(groups.size());
  if (::getgrouplist(user.name.c_str(), user.group, groups.data(), &count) < 0) return false;
  groups.resize(static_cast<std::size_t>(count));
  return std::ranges::find(groups, gid) != groups.end();
}

std::string who_is(uid_t uid) {
  const auto user = user_of(uid);
  return user ? "user '" + user->name + "'" : "uid " + std::to_string(uid);
}

std::string reason(const wire::Endpoint& endpoint) {
  struct stat found {};
  if (::stat(endpoint.run_directory.c_str(), &found) != 0) return "a folder above it is closed to you";
  const std::string serves = "a broker there serves " + who_is(found.st_uid);
  if ((found.st_mode & S_IXGRP) == 0) {
    return serves + " only: run your own with 'modelbroker serve', or have that one started with --group";
  }
  const std::string group = group_name(found.st_gid);
  const std::string serves_both = serves + " and the members of group '" + group + "'";
  const auto user = user_of(::geteuid());
  if (user && is_member(*user, found.st_gid)) {
    return serves_both + "; you became one after this session began: log in again, or run 'newgrp " + group + "'";
  }
  return serves_both + "; join it with 'sudo usermod -aG " + group + " " + (user ? user->name : "$USER") +
         "', then log in again";
}

}  // namespace

Error refused(const wire::Endpoint& endpoint) {
  return {ErrorCode::kPermissionDenied, "you may not connect to " + endpoint.fds() + ": " + reason(endpoint)};
}

}  // namespace modelbroker::client
