// Directory: what a format reader finds in a file's header: where each tensor's bytes are.
//
// No payload is read. One function a format; the table chooses by the file's first bytes, and the
// suffix only speaks in the error. Threads: any; call on a job thread (it reads the file).
// Failure: data_loss for a damaged file (what and where), unimplemented for a format that this version does not read,
// invalid_argument for what is not a regular file. `label` is the path for messages.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "shm/error.h"
#include "shm/fd.h"
#include "shm/manifest.h"
#include "shm/os.h"

namespace modelbroker {

struct Directory {
  std::string format;                // "safetensors"
  FileIdentity source;               // as seen before the header was read
  ByteRange payload;                 // of the file: the bytes to read into the block
  std::vector<TensorEntry> tensors;  // offsets count from payload.offset; sorted by offset
  std::map<std::string, std::string> metadata;
};

// fstat of a regular file; invalid_argument (naming what it is) for anything else.
[[nodiscard]] Result<FileIdentity> identify(Os& os, int fd, const std::string& label);

[[nodiscard]] Result<Directory> read_directory(Os& os, int fd, const std::string& label);

// `.safetensors` and `.sft`.
[[nodiscard]] Result<Directory> read_safetensors_directory(Os& os, int fd, const std::string& label,
                                                           const FileIdentity& source);

}  // namespace modelbroker
