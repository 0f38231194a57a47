// SourceFiles: the files that a load or attach by a path is about, opened with the caller's own rights.
//
// One file; or a set's index and every file beside it that it may name. Threads: values. Failure: what the system said
// of the file, resource_exhausted for a folder with more files than a set may have.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "shm/error.h"
#include "shm/fd.h"
#include "shm/os.h"

namespace modelbroker::client {

struct SourceFiles {
  static constexpr std::size_t kMost = 1024;  // beside an index
  struct One {
    Fd file;
    std::string name;  // in its folder
  };
  std::vector<One> files;  // the index first
  bool is_set = false;
};

[[nodiscard]] Result<SourceFiles> open_sources(Os& os, const std::string& path);
// By its name alone.
[[nodiscard]] bool is_model_file(std::string_view path);

// Hands the files in, each by `offer` (of an Fd, to its handle), and names them in the request.
template <class M, class Offer>
[[nodiscard]] Result<void> offer_sources(const SourceFiles& sources, M& request, Offer offer) {
  request.files.clear();
  for (const SourceFiles::One& one : sources.files) {
    MODELBROKER_ASSIGN(std::string handle, offer(one.file));
    if (!sources.is_set) {
      request.file = std::move(handle);
    } else {
      request.files.push_back({std::move(handle), one.name});
    }
  }
  return {};
}

}  // namespace modelbroker::client
