#include "broker/formats/directory.h"

#include <sys/stat.h>

#include <array>
#include <cerrno>
#include <string_view>

#include "broker/formats/other_formats.h"

namespace modelbroker {
namespace {

std::string_view kind_of(mode_t mode) {
  if (S_ISDIR(mode)) return "a directory";
  if (S_ISFIFO(mode)) return "a pipe";
  if (S_ISSOCK(mode)) return "a socket";
  if (S_ISCHR(mode) || S_ISBLK(mode)) return "a device";
  return "no regular file";
}

std::int64_t nanoseconds(const struct timespec& time) {
  return static_cast<std::int64_t>(time.tv_sec) * 1'000'000'000 + time.tv_nsec;
}

}  // namespace

Result<FileIdentity> identify(Os& os, int fd, const std::string& label) {
  const auto found = os.fstat(fd);
  if (!found) return fail_errno(found.error().number, "looking at '" + label + "'");
  if (!S_ISREG(found->st_mode)) {
    return fail(ErrorCode::kInvalidArgument, "'" + label + "' is " + std::string(kind_of(found->st_mode)) +
                                                 ": give the path of a .safetensors file");
  }
  FileIdentity identity;
  identity.device = found->st_dev;
  identity.inode = found->st_ino;
  identity.size = static_cast<std::uint64_t>(found->st_size);
  identity.mtime_ns = nanoseconds(found->st_mtim);
  identity.ctime_ns = nanoseconds(found->st_ctim);
  return identity;
}

Result<Directory> read_directory(Os& os, int fd, const std::string& label) {
  MODELBROKER_ASSIGN(const FileIdentity source, identify(os, fd, label));
  std::array<char, kStartBytes> bytes{};
  const auto got = os.pread(fd, std::as_writable_bytes(std::span(bytes)), 0);
  if (!got && got.error().number == EBADF) {
    return fail(ErrorCode::kInvalidArgument, "the descriptor offered for '" + label + "' is not open for reading");
  }
  if (!got) return fail_errno(got.error().number, "reading '" + label + "'");
  if (const OtherFormat* const other = other_format({bytes.data(), *got})) {
    return fail(other->code, "'" + label + "' is " + std::string(other->what) +
                                 "; this version loads safetensors files only: " + std::string(other->remedy));
  }
  return read_safetensors_directory(os, fd, label, source);
}

}  // namespace modelbroker
