#include "cpp_client/paths.h"

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "cpp_client/source_files.h"
#include "shm/manifest.h"

namespace modelbroker::client {

std::string absolute_path(const std::string& path) {
  std::error_code error;
  const std::filesystem::path absolute = std::filesystem::absolute(path, error);
  if (error) return path;
  // "link/.." is the folder above what the link leads to: only the file system knows which.
  const bool climbs = std::ranges::find(absolute, "..") != absolute.end();
  const std::filesystem::path real = climbs ? std::filesystem::canonical(absolute, error) : std::filesystem::path();
  return climbs && !error ? real.string() : absolute.lexically_normal().string();
}

std::string name_or_path(const std::string& word) {
  std::error_code error;
  const auto starts = [&](const char* with) { return word.starts_with(with); };
  const bool has_suffix = is_model_file(word) || word.ends_with(BlockSet::kIndexSuffix);
  const bool has_slash = word.find('/') != std::string::npos;
  const bool is_path = starts("/") || starts("./") || starts("../") || (has_slash && has_suffix) ||
                       ((has_slash || has_suffix) && std::filesystem::is_regular_file(word, error));
  return is_path ? absolute_path(word) : word;
}

}  // namespace modelbroker::client
