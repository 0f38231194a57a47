#include "shm/error.h"

#include <array>
#include <cerrno>
#include <optional>
#include <system_error>

#include "shm/limits.h"

namespace modelbroker {
namespace {

constexpr std::array<std::string_view, 13> kWords{
    "invalid_argument",   "not_found",         "already_exists", "failed_precondition", "stale_generation",
    "resource_exhausted", "permission_denied", "data_loss",      "unavailable",         "deadline_exceeded",
    "cancelled",          "unimplemented",     "internal"};

ErrorCode code_of(int error_number) noexcept {
  switch (error_number) {
    case ENOENT:
      return ErrorCode::kNotFound;
    case EEXIST:
      return ErrorCode::kAlreadyExists;
    case EACCES:
    case EPERM:
    case EROFS:
      return ErrorCode::kPermissionDenied;
    case ENOMEM:
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
    case EMFILE:
    case ENFILE:
    case ENOBUFS:
    case EFAULT:
      return ErrorCode::kResourceExhausted;  // EFAULT: MADV_POPULATE_WRITE found no memory
    case EIO:
      return ErrorCode::kDataLoss;
    case ENOTDIR:
    case EISDIR:
    case ELOOP:
    case ENAMETOOLONG:
    case EINVAL:
    case ENXIO:
      return ErrorCode::kInvalidArgument;
    case ENOSYS:
    case EOPNOTSUPP:
      return ErrorCode::kUnimplemented;
    case ECONNREFUSED:
    case ECONNRESET:
    case EPIPE:
    case EAGAIN:
    case EINTR:
    case EADDRINUSE:
    case EBUSY:
    case ESTALE:
    case ETIMEDOUT:
      return ErrorCode::kUnavailable;
    default:
      return ErrorCode::kInternal;
  }
}

// EFBIG: this process's limit, else the file system's.
std::string too_big() {
  const std::optional<std::uint64_t> limit = file_size_limit();
  if (!limit) return "the file system takes no file of that size: use another";
  return "files of this process may have at most " + std::to_string(*limit) + " bytes: raise that by " +
         file_size_advice();
}

std::string remedy_of(int error_number) {
  switch (error_number) {
    case ENOMEM:
    case ENOSPC:
    case EFAULT:
      return "free memory, or give the RAM directory a larger size";
    case EMFILE:
      return "raise the limit of open files (ulimit -n)";
    case EFBIG:
      return too_big();
    case EDQUOT:
      return "this user's quota of that file system is used up: free some of it, or raise the quota";
    case EIO:
      return "the device reported an error: check the disk";
    default:
      return "";
  }
}

}  // namespace

std::string_view to_string(ErrorCode code) noexcept {
  const auto index = static_cast<std::size_t>(code);
  return index < kWords.size() ? kWords[index] : kWords.back();
}

ErrorCode error_code_from(std::string_view word) noexcept {
  for (std::size_t i = 0; i < kWords.size(); ++i) {
    if (kWords[i] == word) return static_cast<ErrorCode>(i);
  }
  return ErrorCode::kInternal;
}

Error error_from_errno(int error_number, std::string_view what) {
  std::string message(what);
  message += ": " + std::generic_category().message(error_number);
  if (const std::string remedy = remedy_of(error_number); !remedy.empty()) {
    message += " (";
    message += remedy;
    message += ')';
  }
  return {code_of(error_number), std::move(message)};
}

}  // namespace modelbroker
