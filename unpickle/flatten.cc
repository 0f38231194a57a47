#include "unpickle/flatten.h"

#include <algorithm>
#include <array>
#include <utility>

#include "shm/text.h"
#include "unpickle/bounds.h"

namespace modelbroker::unpickle {
namespace {

constexpr auto kWrappers = std::to_array<std::string_view>({
    "state_dict",
    "model",
    "model_state_dict",
    "model_state",
    "params",
    "params_ema",
    "model_ema",
    "ema",
    "module",
    "net",
    "network",
    "generator",
    "weights",
    "ema_state_dict",
    "net_state_dict",
    "state_dict_ema",
});
constexpr std::string_view kLoneTensor = "tensor";  // torch.save of a tensor itself
constexpr std::size_t kShownName = 80;

bool is_container(Kind kind) {
  return kind == Kind::kDict || kind == Kind::kList || kind == Kind::kTuple || kind == Kind::kSet ||
         kind == Kind::kObject;
}

tl::unexpected<Error> about(std::string_view name, const Error& error) {
  return fail(error.code, "tensor '" + printable(name, kShownName) + "': " + error.message);
}

// Its text, as a part of a name; empty for a key that has none.
std::string key_text(const Value& key) {
  if (key.kind == Kind::kInt) return std::to_string(key.number);
  return key.kind == Kind::kString ? std::string(key.text) : std::string{};
}

// One walk over all that a root holds.
class Walk {
 public:
  explicit Walk(const Heap& heap) noexcept : heap_(heap) {}

  [[nodiscard]] Result<Flattened> run(Id root);

 private:
  [[nodiscard]] Result<void> visit(Id id, std::size_t depth);
  [[nodiscard]] Result<void> visit_dictionary(Id id, std::size_t depth);
  [[nodiscard]] Result<void> visit_child(std::string_view part, Id id, std::size_t depth);
  [[nodiscard]] Result<void> add(Id id);
  [[nodiscard]] Result<void> leave_out(Id id, std::size_t depth);
  [[nodiscard]] Result<void> count_visit(std::size_t depth);
  [[nodiscard]] Result<std::uint64_t> tensors_in(Id id);
  [[nodiscard]] Result<Id> without_wrapper(Id root);
  [[nodiscard]] Result<void> check_names() const;

  const Heap& heap_;
  Flattened out_;
  std::string name_;
  std::size_t visits_ = 0;
  std::uint64_t name_bytes_ = 0;
};

Result<void> Walk::count_visit(std::size_t depth) {
  if (depth <= kMaxNesting && ++visits_ <= kMaxVisits) return {};
  return fail(ErrorCode::kUnimplemented, "its values lie deeper in each other, or stand in more places, than is read");
}

// Counts the tensors of what is left out.
Result<void> Walk::leave_out(Id id, std::size_t depth) {
  MODELBROKER_TRY(count_visit(depth));
  if (heap_[id].kind == Kind::kTensor) ++out_.left_out;
  if (!is_container(heap_[id].kind)) return {};
  for (const Id child : heap_.children(id)) MODELBROKER_TRY(leave_out(child, depth + 1));
  return {};
}

Result<std::uint64_t> Walk::tensors_in(Id id) {
  const std::uint64_t before = std::exchange(out_.left_out, 0);
  MODELBROKER_TRY(leave_out(id, 0));
  return std::exchange(out_.left_out, before);
}

// The dictionary inside the only entry with tensors, where that is named as a wrapper.
Result<Id> Walk::without_wrapper(Id root) {
  const auto items = heap_.children(root);
  std::size_t holder = items.size();
  for (std::size_t i = 0; i + 1 < items.size(); i += 2) {
    if (of_trainer(heap_, items[i], items[i + 1]) || heap_[items[i + 1]].kind == Kind::kObject) continue;
    MODELBROKER_ASSIGN(const std::uint64_t tensors, tensors_in(items[i + 1]));
    if (tensors == 0) continue;
    if (holder != items.size()) return root;
    holder = i;
  }
  if (holder == items.size() || heap_[items[holder + 1]].kind != Kind::kDict) return root;
  const std::string key = key_text(heap_[items[holder]]);
  if (std::ranges::find(kWrappers, key) == kWrappers.end()) return root;
  // What else the root holds are plain values, and tensors that are left out.
  for (std::size_t i = 0; i + 1 < items.size(); i += 2) {
    if (i != holder) MODELBROKER_TRY(leave_out(items[i + 1], 1));
  }
  out_.wrapper = key;
  return items[holder + 1];
}

Result<Flattened> Walk::run(Id root) {
  if (heap_[root].kind == Kind::kTensor) {
    name_ = kLoneTensor;
    MODELBROKER_TRY(add(root));
    return std::move(out_);
  }
  Id weights = root;
  if (heap_[root].kind == Kind::kDict) {
    MODELBROKER_ASSIGN(weights, without_wrapper(root));
  }
  MODELBROKER_TRY(visit(weights, weights == root ? 0 : 1));
  MODELBROKER_TRY(check_names());
  out_.values = plain_values(heap_, root);
  out_.values_left_out = out_.values.empty();
  return std::move(out_);
}

Result<void> Walk::visit(Id id, std::size_t depth) {
  MODELBROKER_TRY(count_visit(depth));
  switch (heap_[id].kind) {
    case Kind::kTensor:
      return add(id);
    case Kind::kDict:
      return visit_dictionary(id, depth);
    case Kind::kList:
    case Kind::kTuple: {
      const auto children = heap_.children(id);
      for (std::size_t i = 0; i < children.size(); ++i) {
        MODELBROKER_TRY(visit_child(std::to_string(i), children[i], depth + 1));
      }
      return {};
    }
    case Kind::kSet:
    case Kind::kObject:
      return leave_out(id, depth);
    default:
      return {};
  }
}

Result<void> Walk::visit_dictionary(Id id, std::size_t depth) {
  const auto items = heap_.children(id);
  for (std::size_t i = 0; i + 1 < items.size(); i += 2) {
    const std::string part = key_text(heap_[items[i]]);
    const bool left_out = part.empty() || (depth == 0 && of_trainer(heap_, items[i], items[i + 1]));
    if (left_out) {
      MODELBROKER_TRY(leave_out(items[i + 1], depth + 1));
    } else {
      MODELBROKER_TRY(visit_child(part, items[i + 1], depth + 1));
    }
  }
  return {};
}

Result<void> Walk::visit_child(std::string_view part, Id id, std::size_t depth) {
  if (heap_[id].kind != Kind::kTensor && !is_container(heap_[id].kind)) return count_visit(depth);
  const std::size_t before = name_.size();
  if (!name_.empty()) name_ += '.';
  name_ += part;
  auto done = name_.size() <= kMaxTensorNameBytes
                  ? visit(id, depth)
                  : fail(ErrorCode::kUnimplemented,
                         "the name of a tensor, '" + printable(name_, kShownName) + "', is too long");
  name_.resize(before);
  return done;
}

Result<void> Walk::add(Id id) {
  if (!valid_utf8(name_)) return about(name_, {ErrorCode::kDataLoss, "its name is not UTF-8"});
  name_bytes_ += name_.size();
  if (out_.tensors.size() >= kMaxTensors || name_bytes_ > kMaxTensorNamesBytes) {
    return fail(ErrorCode::kUnimplemented, "it has more tensors than are read");
  }
  const Tensor& tensor = heap_.tensor(id);
  if (!tensor.refusal.empty()) return about(name_, {ErrorCode::kUnimplemented, tensor.refusal});
  const Storage& storage = heap_.storage_of(tensor);
  auto placement = place(tensor, storage);
  if (!placement) return about(name_, placement.error());
  out_.tensors.push_back({name_, tensor.dtype, storage.key, storage.bytes, std::move(*placement)});
  return {};
}

Result<void> Walk::check_names() const {
  std::vector<std::string_view> names;
  for (const NamedTensor& tensor : out_.tensors) names.push_back(tensor.name);
  std::ranges::sort(names);
  const auto twice = std::ranges::adjacent_find(names);
  if (twice == names.end()) return {};
  return about(*twice, {ErrorCode::kDataLoss, "two tensors would have this name"});
}

}  // namespace

bool of_trainer(const Heap& heap, Id key, Id value) noexcept {
  if (heap[key].kind != Kind::kString || !is_container(heap[value].kind)) return false;
  const std::string_view name = heap[key].text;
  return name.starts_with("optimizer") || name.starts_with("lr_scheduler") || name == "callbacks" || name == "loops" ||
         name == "scaler";
}

Result<Flattened> flatten(const Heap& heap, Id root) { return Walk(heap).run(root); }

}  // namespace modelbroker::unpickle
