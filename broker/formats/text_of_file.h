// What the readers of JSON in files share. Threads: any; call on a job thread (it reads the file).
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "shm/error.h"
#include "shm/manifest.h"
#include "shm/os.h"

namespace modelbroker {

// The names by which nlohmann's parser asks for the types of a walker.
struct JsonWalker {
  using number_integer_t = nlohmann::json::number_integer_t;
  using number_unsigned_t = nlohmann::json::number_unsigned_t;
  using number_float_t = nlohmann::json::number_float_t;
  using string_t = nlohmann::json::string_t;
  using binary_t = nlohmann::json::binary_t;
};

// That range of the file; shorter where the file ends in it.
[[nodiscard]] Result<std::string> text_of_file(Os& os, int fd, const ByteRange& range, const std::string& label);

}  // namespace modelbroker
