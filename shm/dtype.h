// The dtypes of safetensors: the one table of the C++ code.
//
// The list belongs to safetensors and grows. A word that is not in it is an opaque dtype: its shape and its bytes are
// what the source says, and users get the bytes. Threads: constants and pure functions.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "shm/error.h"

namespace modelbroker {

struct Dtype {
  std::string_view word;
  unsigned bits;  // of one element
};

inline constexpr std::array<Dtype, 22> kDtypes{{
    {.word = "BOOL", .bits = 8},        {.word = "U8", .bits = 8},          {.word = "I8", .bits = 8},
    {.word = "F8_E5M2", .bits = 8},     {.word = "F8_E4M3", .bits = 8},     {.word = "F8_E8M0", .bits = 8},
    {.word = "F8_E4M3FNUZ", .bits = 8}, {.word = "F8_E5M2FNUZ", .bits = 8}, {.word = "I16", .bits = 16},
    {.word = "U16", .bits = 16},        {.word = "F16", .bits = 16},        {.word = "BF16", .bits = 16},
    {.word = "I32", .bits = 32},        {.word = "U32", .bits = 32},        {.word = "F32", .bits = 32},
    {.word = "C64", .bits = 64},        {.word = "F64", .bits = 64},        {.word = "I64", .bits = 64},
    {.word = "U64", .bits = 64},        {.word = "F4", .bits = 4},          {.word = "F6_E2M3", .bits = 6},
    {.word = "F6_E3M2", .bits = 6},
}};

inline constexpr std::size_t kMaxDtypeBytes = 32;

// Bits of one element; 0 for an opaque dtype.
[[nodiscard]] unsigned dtype_bits(std::string_view dtype) noexcept;
// 1 to 32 printable ASCII characters without spaces: what may stand in a block and in a message.
[[nodiscard]] bool valid_dtype(std::string_view dtype) noexcept;
// Bytes of a tensor. data_loss where the product overflows or ends inside a byte, unimplemented for an opaque dtype;
// the message does not name the tensor: the caller does.
[[nodiscard]] Result<std::uint64_t> tensor_bytes(std::string_view dtype, std::span<const std::uint64_t> shape);
// Whether a tensor may have `size` bytes: data_loss if dtype and shape say otherwise or the dtype is not a valid word.
// The size of an opaque dtype is believed.
[[nodiscard]] Result<void> check_tensor_size(std::string_view dtype, std::span<const std::uint64_t> shape,
                                             std::uint64_t size);

}  // namespace modelbroker
