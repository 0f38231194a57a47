// The dtypes and the storage classes of torch, and which dtype of a manifest each is.
//
// Threads: constants and pure functions.
#pragma once

#include <cstdint>
#include <string_view>

namespace modelbroker::unpickle {

struct TorchDtype {
  std::string_view name;     // of torch: "float32"
  std::string_view storage;  // its class's name before "Storage"; empty: it has none of its own
  std::string_view word;     // of a manifest; empty: a tensor of it is refused
  std::uint8_t bytes = 0;    // of one element
};

// Null for a name that is not a dtype; a dtype that is known and refused has no word.
[[nodiscard]] const TorchDtype* torch_dtype(std::string_view name) noexcept;
// Of a class name such as "FloatStorage". "UntypedStorage" is bytes. Null for any other name.
[[nodiscard]] const TorchDtype* storage_dtype(std::string_view class_name) noexcept;
// Its elements are pairs of 4-bit numbers.
[[nodiscard]] bool packs_two(const TorchDtype& dtype) noexcept;

}  // namespace modelbroker::unpickle
