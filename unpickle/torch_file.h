// TorchFile: what a PyTorch file holds, and where the bytes of each tensor stand in it.
//
// Nothing of the file but its directory and its pickles is read. Threads: pure functions. Failure: the error says what
// is wrong and what to do, without the file's name: the caller knows it. Memory is bounded by bounds.h.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "shm/error.h"
#include "unpickle/byte_source.h"

namespace modelbroker::unpickle {

struct TorchTensor {
  std::string name;
  std::string_view dtype;              // of a manifest: "F32"
  std::vector<std::uint64_t> shape;    // in elements of it
  std::vector<std::uint64_t> strides;  // empty: row-major
  std::uint64_t offset = 0;            // of its first element, in the file
  std::uint64_t size = 0;              // to behind its last
};

struct TorchFile {
  std::string_view format;  // torch_zip, torch_legacy
  std::vector<TorchTensor> tensors{};
  std::string wrapper;                      // the outer level that was taken off the names
  std::string values;                       // plain values of the file: a JSON object
  bool values_left_out = false;             // more than are kept
  std::uint64_t left_out = 0;               // tensors of optimizers and of unknown objects
  std::vector<std::string> placeholders{};  // classes that are not known, and were not imported
};

// Of any form that torch.save writes, by its first bytes.
[[nodiscard]] Result<TorchFile> read_torch_file(const ByteSource& source);

}  // namespace modelbroker::unpickle
