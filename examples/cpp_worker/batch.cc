#include "batch.h"

#include <ATen/ops/empty.h>

#include <string>
#include <utility>
#include <vector>

namespace example {

using modelbroker::ErrorCode;
using modelbroker::fail;
using modelbroker::Result;
using nlohmann::json;

namespace {

// Numbers from 0 to `below`, in rows of one length.
Result<at::Tensor> read_rows(const json& words, const std::string& name, const Limits& limits, std::int64_t below) {
  const auto wrong = [&name](const std::string& what) { return fail(ErrorCode::kInvalidArgument, name + ": " + what); };
  const json rows = words.value(name, json());
  if (!rows.is_array() || rows.empty()) return wrong("an array with a row for each sentence is wanted");
  if (std::cmp_greater(rows.size(), limits.sentences)) {
    return wrong(std::to_string(rows.size()) + " sentences, at most " + std::to_string(limits.sentences) + " fit");
  }
  const std::size_t width = rows[0].size();
  if (width == 0 || std::cmp_greater(width, limits.tokens)) {
    return wrong("1 to " + std::to_string(limits.tokens) + " tokens a sentence are wanted");
  }
  std::vector<std::int64_t> numbers;
  numbers.reserve(rows.size() * width);
  for (const json& row : rows) {
    if (!row.is_array() || row.size() != width) return wrong("rows must be arrays of one length: pad them");
    for (const json& number : row) {
      if (!number.is_number_unsigned() || number.get<std::uint64_t>() >= static_cast<std::uint64_t>(below)) {
        return wrong(number.dump() + " is not a number from 0 to " + std::to_string(below - 1));
      }
      numbers.push_back(number.get<std::int64_t>());
    }
  }
  at::Tensor tensor =
      at::empty({static_cast<std::int64_t>(rows.size()), static_cast<std::int64_t>(width)}, at::ScalarType::Long);
  std::copy(numbers.begin(), numbers.end(), tensor.mutable_data_ptr<std::int64_t>());
  return tensor;
}

}  // namespace

Result<Batch> read_batch(const json& words, const Limits& limits) {
  if (!words.is_object()) return fail(ErrorCode::kInvalidArgument, "a request is a JSON object");
  Batch batch;
  MODELBROKER_ASSIGN(batch.input_ids, read_rows(words, "input_ids", limits, limits.vocabulary));
  MODELBROKER_ASSIGN(batch.attention_mask, read_rows(words, "attention_mask", limits, 2));
  if (batch.input_ids.sizes() != batch.attention_mask.sizes()) {
    return fail(ErrorCode::kInvalidArgument, "input_ids and attention_mask must be alike in rows and their length");
  }
  if (!batch.attention_mask.any(1).all().item<bool>()) {
    return fail(ErrorCode::kInvalidArgument, "attention_mask: a sentence without a token that counts has no meaning");
  }
  return batch;
}

}  // namespace example
