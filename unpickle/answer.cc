#include "unpickle/answer.h"

#include <span>

#include "shm/text.h"
#include "unpickle/json.h"

namespace modelbroker::unpickle {
namespace {

constexpr std::size_t kMaxMessage = 1000;

void write_numbers(JsonText& out, std::span<const std::uint64_t> numbers) {
  out.raw("[");
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    if (i > 0) out.raw(",");
    out.number(numbers[i]);
  }
  out.raw("]");
}

void write_tensor(JsonText& out, const TorchTensor& tensor) {
  out.raw("{\"name\":");
  out.string(tensor.name);
  out.raw(",\"dtype\":");
  out.string(tensor.dtype);
  out.raw(",\"shape\":");
  write_numbers(out, tensor.shape);
  if (!tensor.strides.empty()) {
    out.raw(",\"strides\":");
    write_numbers(out, tensor.strides);
  }
  out.raw(",\"offset\":");
  out.number(tensor.offset);
  out.raw(",\"size\":");
  out.number(tensor.size);
  out.raw("}");
}

void write_file(JsonText& out, const TorchFile& file) {
  out.raw("{\"format\":");
  out.string(file.format);
  out.raw(",\"tensors\":[");
  for (std::size_t i = 0; i < file.tensors.size(); ++i) {
    if (i > 0) out.raw(",");
    write_tensor(out, file.tensors[i]);
  }
  out.raw("],\"wrapper\":");
  out.string(file.wrapper);
  out.raw(",\"values\":");
  out.raw(file.values.empty() ? "{}" : file.values);
  out.raw(",\"values_left_out\":");
  out.raw(file.values_left_out ? "true" : "false");
  out.raw(",\"left_out\":");
  out.number(file.left_out);
  out.raw(",\"placeholders\":[");
  for (std::size_t i = 0; i < file.placeholders.size(); ++i) {
    if (i > 0) out.raw(",");
    out.string(file.placeholders[i]);
  }
  out.raw("]}");
}

void write_error(JsonText& out, const Error& error) {
  out.raw("{\"error\":{\"code\":");
  out.string(to_string(error.code));
  out.raw(",\"message\":");
  out.string(printable(error.message, kMaxMessage));
  out.raw("}}");
}

}  // namespace

std::string answer(const Result<TorchFile>& file) {
  JsonText out;
  if (file) {
    write_file(out, *file);
  } else {
    write_error(out, file.error());
  }
  out.raw("\n");
  return std::move(out.text());
}

}  // namespace modelbroker::unpickle
