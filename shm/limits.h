// Limits of this process that a file may run into.
//
// Threads: any. Failure: none; what cannot be read is no limit.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace modelbroker {

// Bytes that a file may have which this process writes (`ulimit -f`, LimitFSIZE= of a unit); nothing: no limit.
[[nodiscard]] std::optional<std::uint64_t> file_size_limit() noexcept;
// By what it is raised.
[[nodiscard]] std::string file_size_advice();

// From now on a write beyond that limit is an error (EFBIG), not the end of the process.
void survive_file_size_limit() noexcept;

}  // namespace modelbroker
