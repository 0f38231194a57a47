#include "unpickle/heap.h"

#include <utility>

#include "unpickle/bounds.h"

namespace modelbroker::unpickle {
namespace {

// Numbers that checkpoints are full of: one value each, made at once. Values of these kinds never change.
constexpr std::int64_t kSmallInts = 256;
constexpr Id kFirstSmallInt = 3;

}  // namespace

Heap::Heap() {
  add({.kind = Kind::kNone});
  add({.kind = Kind::kBool, .number = 0});
  add({.kind = Kind::kBool, .number = 1});
  for (std::int64_t number = 0; number < kSmallInts; ++number) add({.kind = Kind::kInt, .number = number});
}

Id Heap::add(Value value) {
  if (values_.size() >= kMaxValues) {
    exceeded_ = "values";
    return none();
  }
  values_.push_back(value);
  return static_cast<Id>(values_.size() - 1);
}

Id Heap::add_int(std::int64_t number) {
  if (number >= 0 && number < kSmallInts) return kFirstSmallInt + static_cast<Id>(number);
  return add({.kind = Kind::kInt, .number = number});
}

Id Heap::add_list(Kind kind, std::span<const Id> children, std::string_view text) {
  elements_ += children.size();
  if (elements_ > kMaxElements) {
    exceeded_ = "elements";
    return none();
  }
  const Id id = add({.kind = kind, .index = static_cast<Id>(lists_.size()), .text = text});
  if (exceeded_.empty()) lists_.emplace_back(children.begin(), children.end());
  return id;
}

Id Heap::add_storage(Storage storage) {
  const Id id = add({.kind = Kind::kStorage, .index = static_cast<Id>(storages_.size())});
  if (exceeded_.empty()) storages_.push_back(storage);
  return id;
}

Id Heap::add_tensor(Tensor tensor) {
  if (tensors_.size() >= kMaxTensors) {
    exceeded_ = "tensors";
    return none();
  }
  const Id id = add({.kind = Kind::kTensor, .index = static_cast<Id>(tensors_.size())});
  if (exceeded_.empty()) tensors_.push_back(std::move(tensor));
  return id;
}

void Heap::append(Id to, std::span<const Id> children) {
  elements_ += children.size();
  if (elements_ > kMaxElements) {
    exceeded_ = "elements";
    return;
  }
  auto& list = lists_[values_[to].index];
  list.insert(list.end(), children.begin(), children.end());
}

std::string_view Heap::keep(std::string text) {
  text_bytes_ += text.size();
  if (text_bytes_ > kMaxDecodedBytes) {
    exceeded_ = "bytes of decoded text";
    return {};
  }
  return texts_.emplace_back(std::move(text));
}

std::string_view to_string(Kind kind) noexcept {
  switch (kind) {
    case Kind::kNone:
      return "None";
    case Kind::kBool:
      return "a bool";
    case Kind::kInt:
    case Kind::kLargeInt:
      return "an int";
    case Kind::kFloat:
      return "a float";
    case Kind::kString:
      return "a string";
    case Kind::kBytes:
      return "bytes";
    case Kind::kTuple:
      return "a tuple";
    case Kind::kList:
      return "a list";
    case Kind::kSet:
      return "a set";
    case Kind::kDict:
      return "a dictionary";
    case Kind::kName:
      return "a name";
    case Kind::kObject:
      return "an object";
    case Kind::kStorage:
      return "a storage";
    case Kind::kTensor:
      return "a tensor";
  }
  return "a value";
}

}  // namespace modelbroker::unpickle
