#include "shm/error.h"

#include <array>
#include <cerrno>
#include <system_error>

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
    case ESTALE:
    case ETIMEDOUT:
      return ErrorCode::kUnavailable;
    default:
      return ErrorCode::kInternal;
  }
}

std::string_view remedy_of(int error_number) noexcept {
  switch (error_number) {
    case ENOMEM:
    case ENOSPC:
    case EFAULT:
      return "free memory, or give the RAM directory a larger size";
    case EMFILE:
      return "raise the limit of open files (ulimit -n)";
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
  if (const std::string_view remedy = remedy_of(error_number); !remedy.empty()) {
    message += " (";
    message += remedy;
    message += ')';
  }
  return {code_of(error_number), std::move(message)};
}

}  // namespace modelbroker
