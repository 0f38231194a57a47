#include "shm/dtype.h"

#include <algorithm>
#include <string>

namespace modelbroker {
namespace {

// For messages: a damaged manifest has any bytes there.
std::string shown(std::string_view dtype) {
  std::string word(dtype.substr(0, kMaxDtypeBytes));
  std::ranges::replace_if(
      word, [](char c) { return c < ' ' || c > '~'; }, '?');
  return "'" + word + "'";
}

}  // namespace

unsigned dtype_bits(std::string_view dtype) noexcept {
  const auto* const found = std::ranges::find(kDtypes, dtype, &Dtype::word);
  return found == kDtypes.end() ? 0 : found->bits;
}

bool valid_dtype(std::string_view dtype) noexcept {
  return !dtype.empty() && dtype.size() <= kMaxDtypeBytes &&
         std::ranges::all_of(dtype, [](char c) { return c > ' ' && c <= '~'; });
}

Result<std::uint64_t> tensor_bytes(std::string_view dtype, std::span<const std::uint64_t> shape) {
  const unsigned bits = dtype_bits(dtype);
  if (bits == 0) return fail(ErrorCode::kUnimplemented, "dtype " + shown(dtype) + " is not known");
  std::uint64_t total = 1;
  bool overflows = false;
  for (const std::uint64_t dimension : shape) overflows |= __builtin_mul_overflow(total, dimension, &total);
  overflows |= __builtin_mul_overflow(total, bits, &total);
  if (overflows) return fail(ErrorCode::kDataLoss, "the product of dtype and shape overflows");
  if (total % 8 != 0) return fail(ErrorCode::kDataLoss, "the tensor ends inside a byte");
  return total / 8;
}

Result<void> check_tensor_size(std::string_view dtype, std::span<const std::uint64_t> shape, std::uint64_t size) {
  if (!valid_dtype(dtype)) {
    return fail(ErrorCode::kDataLoss,
                "dtype " + shown(dtype) + " is not 1 to 32 printable ASCII characters without spaces");
  }
  if (dtype_bits(dtype) == 0) return {};
  MODELBROKER_ASSIGN(const std::uint64_t needed, tensor_bytes(dtype, shape));
  if (needed == size) return {};
  return fail(ErrorCode::kDataLoss,
              "it has " + std::to_string(size) + " bytes; dtype and shape need " + std::to_string(needed));
}

}  // namespace modelbroker
