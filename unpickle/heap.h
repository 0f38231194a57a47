// Heap: the values that a pickle describes, as plain numbers, text and lists of indices.
//
// Text stays where it stands in the pickle, which the caller keeps as long as the heap. Values may contain each other
// in a circle. Threads: one. Failure: past the numbers of bounds.h additions are dropped and exceeded() says which:
// whoever adds asks before using what was added.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "unpickle/names.h"
#include "unpickle/torch_dtype.h"

namespace modelbroker::unpickle {

enum class Kind : std::uint8_t {
  kNone,
  kBool,
  kInt,
  kLargeInt,  // does not fit 64 bits
  kFloat,
  kString,
  kBytes,
  kTuple,
  kList,
  kSet,
  kDict,    // key, value, key, value, ...
  kName,    // a class or function
  kObject,  // of the class `text`: arguments, then states and elements that were given to it
  kStorage,
  kTensor,
};

using Id = std::uint32_t;

struct Value {
  Kind kind = Kind::kNone;
  Role role = Role::kValue;           // of a name
  Id index = 0;                       // of its list, storage or tensor
  std::int64_t number = 0;            // bool and int
  double real = 0;                    // float
  std::string_view text{};            // string, bytes; name and object: "module.name"
  const TorchDtype* dtype = nullptr;  // of a name that is a dtype or storage class
};

struct Storage {
  std::string_view key;
  const TorchDtype* dtype = nullptr;
  std::uint64_t count = 0;  // elements
  std::uint64_t bytes = 0;
};

struct Tensor {
  Id storage = 0;
  const TorchDtype* dtype = nullptr;
  std::int64_t offset = 0;  // elements
  std::vector<std::int64_t> shape{}, strides{};
  std::string refusal{};  // why it cannot be held; empty: it can
};

class Heap {
 public:
  Heap();

  [[nodiscard]] Id none() const noexcept { return 0; }
  [[nodiscard]] Id boolean(bool value) const noexcept { return value ? 2 : 1; }
  Id add(Value value);
  Id add_int(std::int64_t number);
  Id add_text(Kind kind, std::string_view text) { return add({.kind = kind, .text = text}); }
  // A tuple, list, set, dict or object with these children.
  Id add_list(Kind kind, std::span<const Id> children, std::string_view text = {});
  Id add_storage(Storage storage);
  Id add_tensor(Tensor tensor);
  // Children at the end of such a value.
  void append(Id to, std::span<const Id> children);
  // Keeps text that does not stand in the pickle.
  [[nodiscard]] std::string_view keep(std::string text);

  [[nodiscard]] const Value& operator[](Id id) const noexcept { return values_[id]; }
  [[nodiscard]] std::span<const Id> children(Id id) const noexcept { return lists_[values_[id].index]; }
  [[nodiscard]] const Storage& storage_of(const Tensor& tensor) const noexcept { return storages_[tensor.storage]; }
  [[nodiscard]] std::span<const Storage> storages() const noexcept { return storages_; }
  [[nodiscard]] const Storage& storage(Id id) const noexcept { return storages_[values_[id].index]; }
  [[nodiscard]] const Tensor& tensor(Id id) const noexcept { return tensors_[values_[id].index]; }

  // What there was too much of; empty: nothing.
  [[nodiscard]] std::string_view exceeded() const noexcept { return exceeded_; }

 private:
  std::vector<Value> values_;
  std::vector<std::vector<Id>> lists_;
  std::vector<Storage> storages_;
  std::vector<Tensor> tensors_;
  std::deque<std::string> texts_;
  std::size_t elements_ = 0;
  std::uint64_t text_bytes_ = 0;
  std::string_view exceeded_;
};

[[nodiscard]] std::string_view to_string(Kind kind) noexcept;

}  // namespace modelbroker::unpickle
