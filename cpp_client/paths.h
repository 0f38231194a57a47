// Paths as users write them, made good for a broker that stands in another folder. Threads: any.
#pragma once

#include <string>

namespace modelbroker::client {

// Absolute and without "." and "..", links left as they are; as given where there is no working directory.
[[nodiscard]] std::string absolute_path(const std::string& path);

// A model's name as it is ("org/model" too), or the absolute form of a path: what begins with "/", "./" or "../", is
// an existing file, or has a folder and a suffix of ours.
[[nodiscard]] std::string name_or_path(const std::string& word);

}  // namespace modelbroker::client
