// What an instance whose broker is gone has left in a RAM directory, and its removal.
//
// Threads: any. Failure: failed_precondition while a broker serves the instance (LockFile::is_held).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "shm/error.h"
#include "shm/os.h"

namespace modelbroker::cli {

struct Cleaned {
  std::size_t blocks = 0;
  std::uint64_t bytes = 0;
  std::vector<std::string> foreign{};  // not safe to touch, and left alone
};

// `with_lock`: its lock file goes too, for no broker of that instance will follow.
[[nodiscard]] Result<Cleaned> clean_instance(Os& os, const std::string& ram_directory, const std::string& instance,
                                             bool with_lock = false);

}  // namespace modelbroker::cli
