#include "broker/cli/paths.h"

#include <filesystem>
#include <system_error>

namespace modelbroker::cli {

std::string absolute_path(const std::string& path) {
  std::error_code error;
  const std::filesystem::path absolute = std::filesystem::absolute(path, error);
  return error ? path : absolute.lexically_normal().string();
}

std::string name_or_path(const std::string& word) {
  std::error_code error;
  const bool looks_like_path =
      word.find('/') != std::string::npos ||
      ((word.ends_with(".safetensors") || word.ends_with(".sft")) && std::filesystem::exists(word, error));
  return looks_like_path ? absolute_path(word) : word;
}

}  // namespace modelbroker::cli
