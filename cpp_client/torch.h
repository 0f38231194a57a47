// libtorch tensors over a model's weights. Nothing is copied: each tensor keeps mapping and lease alive.
//
// Header only, so that it is compiled against your libtorch. In mode kReadOnly a write to such a tensor is a
// segmentation fault: torch knows no read-only tensors.
// Threads: any. Failure: unimplemented for a dtype that is not in the table below (use Tensor::bytes), otherwise as
// Weights.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cpp_client/weights.h"
#include "shm/error.h"

namespace modelbroker {

// What torch calls a safetensors dtype.
[[nodiscard]] inline Result<at::ScalarType> scalar_type(std::string_view dtype) {
  static constexpr std::array<std::pair<std::string_view, at::ScalarType>, 19> kTypes{{
      {"BOOL", at::ScalarType::Bool},
      {"U8", at::ScalarType::Byte},
      {"I8", at::ScalarType::Char},
      {"U16", at::ScalarType::UInt16},
      {"I16", at::ScalarType::Short},
      {"U32", at::ScalarType::UInt32},
      {"I32", at::ScalarType::Int},
      {"U64", at::ScalarType::UInt64},
      {"I64", at::ScalarType::Long},
      {"F16", at::ScalarType::Half},
      {"BF16", at::ScalarType::BFloat16},
      {"F32", at::ScalarType::Float},
      {"F64", at::ScalarType::Double},
      {"C64", at::ScalarType::ComplexFloat},
      {"F8_E4M3", at::ScalarType::Float8_e4m3fn},
      {"F8_E5M2", at::ScalarType::Float8_e5m2},
      {"F8_E8M0", at::ScalarType::Float8_e8m0fnu},
      {"F8_E4M3FNUZ", at::ScalarType::Float8_e4m3fnuz},
      {"F8_E5M2FNUZ", at::ScalarType::Float8_e5m2fnuz},
  }};
  const auto* const found =
      std::find_if(kTypes.begin(), kTypes.end(), [&](const auto& type) { return type.first == dtype; });
  if (found != kTypes.end()) return found->second;
  return fail(ErrorCode::kUnimplemented,
              "there is no torch tensor of dtype " + std::string(dtype) + ": use Tensor::bytes");
}

// A CPU tensor over the weights' memory, with a storage of its own.
[[nodiscard]] inline Result<at::Tensor> to_torch(const Weights& weights, const Tensor& tensor) {
  MODELBROKER_ASSIGN(const at::ScalarType type, scalar_type(tensor.dtype));
  const std::vector<std::int64_t> shape(tensor.shape.begin(), tensor.shape.end());
  // torch takes a pointer that may be written to; whether it may is the mode's matter.
  void* const address = const_cast<std::byte*>(tensor.bytes.data());
  return at::from_blob(
      address, shape, [hold = weights.hold()](void*) {}, at::TensorOptions(type));
}

// All tensors by name: a state dict.
[[nodiscard]] inline Result<std::unordered_map<std::string, at::Tensor>> to_torch(const Weights& weights) {
  MODELBROKER_ASSIGN(const auto tensors, weights.tensors());
  std::unordered_map<std::string, at::Tensor> all;
  all.reserve(tensors.size());
  for (const Tensor& tensor : tensors) {
    MODELBROKER_ASSIGN(at::Tensor view, to_torch(weights, tensor));
    all.emplace(tensor.name, std::move(view));
  }
  return all;
}

}  // namespace modelbroker
