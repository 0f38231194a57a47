#include "cpp_client/source_files.h"

#include <algorithm>
#include <utility>

#include "cpp_client/connection.h"
#include "shm/manifest.h"
#include "shm/text.h"

namespace modelbroker::client {

bool is_model_file(std::string_view path) { return path.ends_with(".safetensors") || path.ends_with(".sft"); }

Result<SourceFiles> open_sources(Os& os, const std::string& path) {
  const auto slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "./" : path.substr(0, slash + 1);
  SourceFiles sources;
  sources.is_set = path.ends_with(BlockSet::kIndexSuffix);
  MODELBROKER_ASSIGN(Fd index, open_source(os, path));
  sources.files.push_back({std::move(index), path.substr(slash + 1)});
  if (!sources.is_set) return sources;
  auto names = os.list_directory(folder);
  if (!names) return fail_errno(names.error().number, "listing '" + printable(folder) + "', where the index lies");
  std::erase_if(*names, [](const std::string& name) { return !is_model_file(name); });
  if (names->size() > SourceFiles::kMost) {
    return fail(ErrorCode::kResourceExhausted, "'" + printable(folder) + "' has " + std::to_string(names->size()) +
                                                   " model files beside the index; a set has at most 1024: put it "
                                                   "into a folder of its own");
  }
  std::ranges::sort(*names);
  for (const std::string& name : *names) {
    auto file = open_source(os, folder + name);
    if (file) {
      sources.files.push_back({std::move(*file), name});
    } else if (file.error().code == ErrorCode::kResourceExhausted) {
      return tl::unexpected(std::move(file).error());
    }  // else, if the index names it, the broker says that it is missing
  }
  return sources;
}

}  // namespace modelbroker::client
