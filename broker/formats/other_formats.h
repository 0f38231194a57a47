// OtherFormat: what users give in place of a safetensors file, told by its first bytes.
//
// Threads: constants and pure functions.
#pragma once

#include <cstddef>
#include <string_view>

#include "shm/error.h"

namespace modelbroker {

// How many of a file's first bytes it takes.
inline constexpr std::size_t kStartBytes = 512;

struct OtherFormat {
  ErrorCode code;
  std::string_view what;    // "'/path' is ..."
  std::string_view remedy;  // what the user should do
};

// Nothing for what may be a safetensors file, and for what is not known.
[[nodiscard]] const OtherFormat* other_format(std::string_view start) noexcept;

}  // namespace modelbroker
