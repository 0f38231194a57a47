// Batch: sentences as token numbers, from the JSON that a request or file holds.
//
// Everything is looked at here: compiled code reads where its input says, without asking.
// Threads: values.
#pragma once

#include <ATen/core/Tensor.h>
#include <modelbroker/error.h>

#include <cstdint>
#include <nlohmann/json.hpp>

namespace example {

// What a network takes.
struct Limits {
  std::int64_t sentences = 0, tokens = 0;  // at most
  std::int64_t vocabulary = 0;             // token numbers are below it
};

struct Batch {
  at::Tensor input_ids, attention_mask;  // int64, [sentences, tokens]
};

// {"input_ids": [[101, 1037, 102], ...], "attention_mask": [[1, 1, 1], ...]}: rows of one length.
// Failure: invalid_argument, which says what is wrong.
[[nodiscard]] modelbroker::Result<Batch> read_batch(const nlohmann::json& words, const Limits& limits);

}  // namespace example
