// Error and Result: how every function of modelbroker fails.
//
// A code says what the caller should do next; the message names the thing and the remedy; details
// carry numbers for programs. The same codes are used on the wire, by the CLI and as Python
// exceptions. Threads: values, no sharing. Nothing here throws or allocates on success.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <utility>

namespace modelbroker {

// The number of a code is part of the CLI's exit status (10 + code); append only.
enum class ErrorCode : std::uint8_t {
  kInvalidArgument = 0,     // fix the call
  kNotFound = 1,            // name something that exists
  kAlreadyExists = 2,       // choose another name
  kFailedPrecondition = 3,  // change state first
  kStaleGeneration = 4,     // ask again
  kResourceExhausted = 5,   // free something or raise the budget
  kPermissionDenied = 6,    // ask somebody who may
  kDataLoss = 7,            // the source is damaged: repair it
  kUnavailable = 8,         // retry
  kDeadlineExceeded = 9,    // allow more time
  kCancelled = 10,          // somebody asked for it
  kUnimplemented = 11,      // this version cannot
  kInternal = 12,           // our bug: report it
};

// "invalid_argument" and so on: the spelling of the wire.
[[nodiscard]] std::string_view to_string(ErrorCode code) noexcept;
// kInternal for a word that this version does not know.
[[nodiscard]] ErrorCode error_code_from(std::string_view word) noexcept;

struct Error {
  ErrorCode code = ErrorCode::kInternal;
  std::string message;
  std::map<std::string, std::uint64_t> details{};  // e.g. needed, limit, draining: bytes
};

template <class T>
using Result = tl::expected<T, Error>;

[[nodiscard]] inline tl::unexpected<Error> fail(ErrorCode code, std::string message,
                                                std::map<std::string, std::uint64_t> details = {}) {
  return tl::unexpected<Error>(Error{code, std::move(message), std::move(details)});
}

// The error of a failed system call: `what` says what was being done to which thing
// ("opening '/x'"); errno chooses the code and, where there is one, the remedy.
[[nodiscard]] Error error_from_errno(int error_number, std::string_view what);
[[nodiscard]] inline tl::unexpected<Error> fail_errno(int error_number, std::string_view what) {
  return tl::unexpected<Error>(error_from_errno(error_number, what));
}

// Leaves the enclosing function with the error of a failed Result<...>.
#define MODELBROKER_TRY(expression)                         \
  do {                                                      \
    if (auto&& try_result = (expression); !try_result) {    \
      return tl::unexpected(std::move(try_result).error()); \
    }                                                       \
  } while (false)
// The same, and declares `variable` with the value of a successful one.
#define MODELBROKER_CONCAT_(a, b) a##b
#define MODELBROKER_CONCAT(a, b) MODELBROKER_CONCAT_(a, b)
#define MODELBROKER_ASSIGN_(temporary, declaration, expression)        \
  auto temporary = (expression);                                       \
  if (!temporary) return tl::unexpected(std::move(temporary).error()); \
  declaration = std::move(*temporary)
#define MODELBROKER_ASSIGN(declaration, expression) \
  MODELBROKER_ASSIGN_(MODELBROKER_CONCAT(assign_result_, __LINE__), declaration, expression)

}  // namespace modelbroker
