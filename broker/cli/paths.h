// Paths as users write them, made good for a broker that stands in another folder. Threads: any.
#pragma once

#include <string>

namespace modelbroker::cli {

// Absolute and without "." and "..", links left as they are; as given where there is no working directory.
[[nodiscard]] std::string absolute_path(const std::string& path);

// A model's name as it is, or the absolute form of what looks like a path.
[[nodiscard]] std::string name_or_path(const std::string& word);

}  // namespace modelbroker::cli
