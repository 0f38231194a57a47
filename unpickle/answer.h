// The answer of modelbroker-unpickle: one JSON object, UTF-8, on one line.
//
//   {"format": "torch_zip", "tensors": [{"name", "dtype", "shape", "strides"?, "offset", "size"}, ...],
//    "wrapper", "values": {...}, "values_left_out", "left_out", "placeholders": [...]}
//   {"error": {"code": "invalid_argument", "message": "..."}}
//
// Threads: pure functions.
#pragma once

#include <string>

#include "unpickle/torch_file.h"

namespace modelbroker::unpickle {

[[nodiscard]] std::string answer(const Result<TorchFile>& file);

}  // namespace modelbroker::unpickle
