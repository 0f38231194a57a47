// SetIndex: the JSON that says which tensor of a sharded model is in which file (`*.safetensors.index.json`).
//
// Only `weight_map` is read, an object of tensor names and plain file names; all else is passed over. Threads: any;
// call on a job thread (it reads the file). Failure: data_loss for anything else (what and where),
// invalid_argument for a file name that leads elsewhere, resource_exhausted for one that is too large. `label` is the
// path for messages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "shm/error.h"
#include "shm/os.h"

namespace modelbroker {

struct SetIndex {
  static constexpr std::size_t kMostFiles = 1024;
  static constexpr std::uint64_t kLargest = std::uint64_t{64} << 20U;  // bytes of JSON

  std::vector<std::string> files;              // each once, by name
  std::map<std::string, std::size_t> tensors;  // in which of the files each is
};

// By its name alone.
[[nodiscard]] bool is_set_index(std::string_view path);
[[nodiscard]] Result<SetIndex> read_set_index(Os& os, int fd, const std::string& label);

}  // namespace modelbroker
