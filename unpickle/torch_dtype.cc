#include "unpickle/torch_dtype.h"

#include <algorithm>
#include <array>

namespace modelbroker::unpickle {
namespace {

constexpr auto kTorchDtypes = std::to_array<TorchDtype>({
    {"float32", "Float", "F32", 4},
    {"float64", "Double", "F64", 8},
    {"float16", "Half", "F16", 2},
    {"bfloat16", "BFloat16", "BF16", 2},
    {"uint8", "Byte", "U8", 1},
    {"int8", "Char", "I8", 1},
    {"int16", "Short", "I16", 2},
    {"int32", "Int", "I32", 4},
    {"int64", "Long", "I64", 8},
    {"bool", "Bool", "BOOL", 1},
    {"complex64", "ComplexFloat", "C64", 8},
    {"complex128", "ComplexDouble", "C128", 16},
    {"complex32", "", "C32", 4},
    {"uint16", "", "U16", 2},
    {"uint32", "", "U32", 4},
    {"uint64", "", "U64", 8},
    {"float8_e4m3fn", "", "F8_E4M3", 1},
    {"float8_e5m2", "", "F8_E5M2", 1},
    {"float8_e4m3fnuz", "", "F8_E4M3FNUZ", 1},
    {"float8_e5m2fnuz", "", "F8_E5M2FNUZ", 1},
    {"float8_e8m0fnu", "", "F8_E8M0", 1},
    {"float4_e2m1fn_x2", "", "F4", 1},
    // Quantised: their numbers mean nothing without scales that a manifest cannot hold.
    {"quint8", "QUInt8", "", 1},
    {"qint8", "QInt8", "", 1},
    {"qint32", "QInt32", "", 4},
    {"quint4x2", "QUInt4x2", "", 1},
    {"quint2x4", "QUInt2x4", "", 1},
    // Shells without operators.
    {"bits1x8", "", "", 1},
    {"bits2x4", "", "", 1},
    {"bits4x2", "", "", 1},
    {"bits8", "", "", 1},
    {"bits16", "", "", 2},
    {"int1", "", "", 1},
    {"int2", "", "", 1},
    {"int3", "", "", 1},
    {"int4", "", "", 1},
    {"int5", "", "", 1},
    {"int6", "", "", 1},
    {"int7", "", "", 1},
    {"uint1", "", "", 1},
    {"uint2", "", "", 1},
    {"uint3", "", "", 1},
    {"uint4", "", "", 1},
    {"uint5", "", "", 1},
    {"uint6", "", "", 1},
    {"uint7", "", "", 1},
});

}  // namespace

const TorchDtype* torch_dtype(std::string_view name) noexcept {
  const auto* const found = std::ranges::find(kTorchDtypes, name, &TorchDtype::name);
  return found == kTorchDtypes.end() ? nullptr : found;
}

const TorchDtype* storage_dtype(std::string_view class_name) noexcept {
  constexpr std::string_view kSuffix = "Storage";
  if (!class_name.ends_with(kSuffix)) return nullptr;
  const std::string_view stem = class_name.substr(0, class_name.size() - kSuffix.size());
  if (stem == "Untyped") return torch_dtype("uint8");
  if (stem.empty()) return nullptr;
  const auto* const found = std::ranges::find(kTorchDtypes, stem, &TorchDtype::storage);
  return found == kTorchDtypes.end() ? nullptr : found;
}

bool packs_two(const TorchDtype& dtype) noexcept { return dtype.word == "F4"; }

}  // namespace modelbroker::unpickle
