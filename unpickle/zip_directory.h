// The directory of a zip archive whose entries are stored as they are.
//
// A zip says everything twice: at each entry and in a directory at its end. Both are read and must agree, so that no
// two programs can see two archives in one file. Zip64 and data descriptors are read; checksums are not checked.
// Threads: pure functions. Failure: data_loss for contradictions and damage, unimplemented for compression,
// encryption and archives in several files. Memory is bounded by bounds.h.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "shm/error.h"
#include "unpickle/byte_source.h"

namespace modelbroker::unpickle {

struct ZipEntry {
  std::string name;
  std::uint64_t header = 0;  // where its local header begins
  std::uint64_t offset = 0;  // where its bytes begin
  std::uint64_t size = 0;
};

// In the order of the file; names are unique and no two entries overlap.
[[nodiscard]] Result<std::vector<ZipEntry>> read_zip_directory(const ByteSource& source);

}  // namespace modelbroker::unpickle
