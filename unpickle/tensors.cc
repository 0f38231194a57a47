#include "unpickle/tensors.h"

#include <algorithm>
#include <string>
#include <utility>

#include "unpickle/bounds.h"

namespace modelbroker::unpickle {
namespace {

tl::unexpected<Error> bad_storage() {
  return fail(ErrorCode::kDataLoss, "its pickle has a persistent id that is not a storage of torch");
}

tl::unexpected<Error> bad_tensor(std::string_view why) {
  return fail(ErrorCode::kDataLoss, "its pickle has a tensor whose " + std::string(why));
}

Result<std::vector<std::int64_t>> dimensions(const Heap& heap, Id id, std::string_view what) {
  if (heap[id].kind != Kind::kTuple || heap.children(id).size() > kMaxDimensions) {
    return bad_tensor(std::string(what) + " is not a tuple of at most " + std::to_string(kMaxDimensions) + " numbers");
  }
  std::vector<std::int64_t> numbers;
  for (const Id child : heap.children(id)) {
    if (heap[child].kind != Kind::kInt) return bad_tensor(std::string(what) + " is not made of numbers");
    numbers.push_back(heap[child].number);
  }
  return numbers;
}

// Bits that torch keeps beside a tensor: its bytes are not its values then.
std::string_view odd_bit(const Heap& heap, Id metadata) {
  if (heap[metadata].kind != Kind::kDict) return {};
  const auto items = heap.children(metadata);
  for (std::size_t i = 0; i + 1 < items.size(); i += 2) {
    const std::string_view key = heap[items[i]].text;
    if ((key == "conj" || key == "neg") && items[i + 1] == heap.boolean(true)) return key;
  }
  return {};
}

std::string refusal_of(const Heap& heap, const Tensor& tensor, std::span<const Id> metadata) {
  if (tensor.dtype->word.empty()) return "its dtype '" + std::string(tensor.dtype->name) + "' cannot be held";
  if (std::ranges::any_of(tensor.strides, [](std::int64_t stride) { return stride < 0; })) {
    return "it has a negative stride";
  }
  if (!metadata.empty() && !odd_bit(heap, metadata.front()).empty()) {
    return "it was saved with the " + std::string(odd_bit(heap, metadata.front())) +
           " bit; save resolve_conj() or resolve_neg() of it";
  }
  return {};
}

// REQUIRES: no dimension is 0. A wrapped product only makes it say no.
bool row_major(std::span<const std::uint64_t> shape, std::span<const std::uint64_t> strides) {
  std::uint64_t expected = 1;
  for (std::size_t i = shape.size(); i-- > 0;) {
    if (shape[i] != 1 && strides[i] != expected) return false;
    expected *= shape[i];
  }
  return true;
}

// Elements from the first to behind the last; the flag says that it does not fit 64 bits.
std::pair<std::uint64_t, bool> span_of(std::span<const std::uint64_t> shape, std::span<const std::uint64_t> strides) {
  if (std::ranges::find(shape, 0U) != shape.end()) return {0, false};
  std::uint64_t span = 1, step = 0;
  bool overflows = false;
  for (std::size_t i = 0; i < shape.size(); ++i) {
    overflows |= __builtin_mul_overflow(shape[i] - 1, strides[i], &step);
    overflows |= __builtin_add_overflow(span, step, &span);
  }
  return {span, overflows};
}

// Two 4-bit numbers in each byte: torch counts bytes, a manifest counts numbers.
Result<void> unpack_twos(Placement& placement) {
  if (placement.shape.empty()) return fail(ErrorCode::kUnimplemented, "it has no dimension that holds pairs");
  if (!placement.strides.empty())
    return fail(ErrorCode::kUnimplemented, "its pairs of 4-bit numbers are not row-major");
  if (__builtin_mul_overflow(placement.shape.back(), std::uint64_t{2}, &placement.shape.back())) {
    return fail(ErrorCode::kDataLoss, "its shape overflows");
  }
  return {};
}

}  // namespace

Result<Storage> storage_of_persistent_id(const Heap& heap, Id id) {
  if (heap[id].kind != Kind::kTuple) return bad_storage();
  const auto parts = heap.children(id);
  if (parts.size() != 5 && parts.size() != 6) return bad_storage();
  const auto& word = heap[parts[0]];
  const auto& type = heap[parts[1]];
  const auto& key = heap[parts[2]];
  const auto& count = heap[parts[4]];
  const bool holds = word.kind == Kind::kString && word.text == "storage" && type.kind == Kind::kName &&
                     type.role == Role::kStorageClass && key.kind == Kind::kString &&
                     heap[parts[3]].kind == Kind::kString && count.kind == Kind::kInt && count.number >= 0;
  if (!holds) return bad_storage();
  if (parts.size() == 6 && heap[parts[5]].kind != Kind::kNone) {
    return fail(ErrorCode::kUnimplemented,
                "storage '" + std::string(key.text) + "' views another, as torch before 0.4 wrote them; save it again");
  }
  Storage storage{.key = key.text, .dtype = type.dtype, .count = static_cast<std::uint64_t>(count.number)};
  if (__builtin_mul_overflow(storage.count, std::uint64_t{storage.dtype->bytes}, &storage.bytes)) return bad_storage();
  return storage;
}

// _rebuild_tensor(storage, offset, shape, strides); v2 adds requires_grad, hooks and perhaps metadata, v3 the dtype
// before these.
Result<Id> make_tensor(Heap& heap, const Value& name, std::span<const Id> arguments) {
  const bool has_dtype = name.role == Role::kRebuildTensorV3;
  const std::size_t fewest = has_dtype ? 7 : 4, most = has_dtype ? 8 : 7;
  if (arguments.size() < fewest || arguments.size() > most) return bad_tensor("arguments are not those of torch");
  if (heap[arguments[0]].kind != Kind::kStorage || heap[arguments[1]].kind != Kind::kInt) {
    return bad_tensor("storage or offset is missing");
  }
  Tensor tensor{.storage = heap[arguments[0]].index, .offset = heap[arguments[1]].number};
  MODELBROKER_ASSIGN(tensor.shape, dimensions(heap, arguments[2], "shape"));
  MODELBROKER_ASSIGN(tensor.strides, dimensions(heap, arguments[3], "strides"));
  const bool counts = std::ranges::all_of(tensor.shape, [](std::int64_t size) { return size >= 0; });
  if (!counts || tensor.offset < 0) return bad_tensor("shape or offset is negative");
  if (tensor.shape.size() != tensor.strides.size()) return bad_tensor("shape and strides differ in length");
  tensor.dtype = heap.storage(arguments[0]).dtype;
  if (has_dtype) {
    if (heap[arguments[6]].role != Role::kDtype || heap[arguments[6]].kind != Kind::kName) {
      return bad_tensor("dtype is missing");
    }
    tensor.dtype = heap[arguments[6]].dtype;
  }
  tensor.refusal = refusal_of(heap, tensor, arguments.size() == most ? arguments.last(1) : arguments.first(0));
  return heap.add_tensor(std::move(tensor));
}

Result<Id> make_refused_tensor(Heap& heap, const Value& name) {
  std::string_view what = "it is nested";
  if (name.text.ends_with("_rebuild_sparse_tensor")) what = "it is sparse; save its to_dense()";
  if (name.text.ends_with("_rebuild_qtensor")) what = "it is quantised; save its dequantize()";
  if (name.text.ends_with("_rebuild_meta_tensor_no_storage")) what = "it is on the meta device and has no values";
  return heap.add_tensor({.dtype = torch_dtype("uint8"), .refusal = std::string(what)});
}

Result<Placement> place(const Tensor& tensor, const Storage& storage) {
  if (!tensor.refusal.empty()) return fail(ErrorCode::kUnimplemented, tensor.refusal);
  Placement placement;
  placement.shape.assign(tensor.shape.begin(), tensor.shape.end());
  placement.strides.assign(tensor.strides.begin(), tensor.strides.end());
  auto [span, overflows] = span_of(placement.shape, placement.strides);
  const std::uint64_t element = tensor.dtype->bytes;
  std::uint64_t end = 0;
  overflows |= __builtin_mul_overflow(span, element, &placement.size);
  overflows |= __builtin_mul_overflow(static_cast<std::uint64_t>(tensor.offset), element, &placement.offset);
  overflows |= __builtin_add_overflow(placement.offset, placement.size, &end);
  if (overflows || end > storage.bytes) {
    return fail(ErrorCode::kDataLoss, "it reaches past the end of its storage '" + std::string(storage.key) + "'");
  }
  if (span == 0 || row_major(placement.shape, placement.strides)) placement.strides.clear();
  if (packs_two(*tensor.dtype)) MODELBROKER_TRY(unpack_twos(placement));
  return placement;
}

}  // namespace modelbroker::unpickle
