#include "unpickle/reductions.h"

#include <algorithm>
#include <bit>
#include <string>
#include <utility>
#include <vector>

#include "unpickle/tensors.h"

namespace modelbroker::unpickle {
namespace {

tl::unexpected<Error> wrong_arguments(const Value& callable) {
  return fail(ErrorCode::kDataLoss,
              "its pickle gives '" + std::string(callable.text) + "' arguments that it cannot have");
}

bool is_sequence(Kind kind) { return kind == Kind::kTuple || kind == Kind::kList || kind == Kind::kSet; }

std::vector<Id> copy_of(const Heap& heap, Id id) {
  const auto children = heap.children(id);
  return {children.begin(), children.end()};
}

// OrderedDict: nothing, a dictionary, or pairs.
Result<Id> make_dictionary(Heap& heap, const Value& name, std::span<const Id> arguments) {
  if (arguments.empty()) return heap.add_list(Kind::kDict, {});
  const Id from = arguments.front();
  if (arguments.size() > 1) return wrong_arguments(name);
  if (heap[from].kind == Kind::kDict) return heap.add_list(Kind::kDict, copy_of(heap, from));
  if (!is_sequence(heap[from].kind)) return wrong_arguments(name);
  std::vector<Id> items;
  for (const Id pair : heap.children(from)) {
    if (!is_sequence(heap[pair].kind) || heap.children(pair).size() != 2) return wrong_arguments(name);
    items.insert(items.end(), heap.children(pair).begin(), heap.children(pair).end());
  }
  return heap.add_list(Kind::kDict, items);
}

Result<Id> make_sequence(Heap& heap, Kind kind, const Value& name, std::span<const Id> arguments) {
  if (arguments.empty()) return heap.add_list(kind, {});
  if (arguments.size() > 1 || !is_sequence(heap[arguments.front()].kind)) return wrong_arguments(name);
  return heap.add_list(kind, copy_of(heap, arguments.front()));
}

// UTF-8 whose characters are all below 256, as Latin-1. ASCII stays where it is.
Result<std::string_view> latin1_of(Heap& heap, const Value& name, std::string_view text) {
  const auto is_ascii = [](char c) { return static_cast<unsigned char>(c) < 0x80; };
  if (std::ranges::all_of(text, is_ascii)) return text;
  std::string bytes;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (is_ascii(text[i])) {
      bytes += text[i];
      continue;
    }
    const auto lead = static_cast<unsigned char>(text[i]);
    if (lead < 0xC2 || lead > 0xC3 || i + 1 == text.size()) return wrong_arguments(name);
    const auto next = static_cast<unsigned char>(text[++i]);
    if ((next & 0xC0U) != 0x80U) return wrong_arguments(name);
    bytes += static_cast<char>(((lead & 0x03U) << 6U) | (next & 0x3FU));
  }
  return heap.keep(std::move(bytes));
}

// bytes: nothing, bytes, or text and the word latin1.
Result<Id> make_bytes(Heap& heap, const Value& name, std::span<const Id> arguments) {
  if (arguments.empty()) return heap.add_text(Kind::kBytes, {});
  const Value& from = heap[arguments.front()];
  if (from.kind == Kind::kBytes && arguments.size() == 1) return heap.add_text(Kind::kBytes, from.text);
  const bool is_text = arguments.size() == 2 && from.kind == Kind::kString;
  if (!is_text) return wrong_arguments(name);
  const std::string_view encoding = heap[arguments[1]].text;
  if (encoding != "latin1" && encoding != "latin-1") return wrong_arguments(name);
  MODELBROKER_ASSIGN(const std::string_view bytes, latin1_of(heap, name, from.text));
  return heap.add_text(Kind::kBytes, bytes);
}

template <class Number>
Number number_of(std::string_view bytes) {
  Number number{};
  std::copy_n(bytes.data(), sizeof number, reinterpret_cast<char*>(&number));
  return number;
}

// A scalar of numpy by its dtype's word, e.g. "f8", in this machine's byte order. Null: of another kind.
Id plain_scalar(Heap& heap, std::string_view word, std::string_view bytes) {
  const auto is = [&](std::string_view wanted, std::size_t size) { return word == wanted && bytes.size() == size; };
  if (is("f8", 8)) return heap.add({.kind = Kind::kFloat, .real = number_of<double>(bytes)});
  if (is("f4", 4)) return heap.add({.kind = Kind::kFloat, .real = number_of<float>(bytes)});
  if (is("i8", 8)) return heap.add_int(number_of<std::int64_t>(bytes));
  if (is("i4", 4)) return heap.add_int(number_of<std::int32_t>(bytes));
  if (is("i2", 2)) return heap.add_int(number_of<std::int16_t>(bytes));
  if (is("i1", 1)) return heap.add_int(number_of<std::int8_t>(bytes));
  if (is("u4", 4)) return heap.add_int(number_of<std::uint32_t>(bytes));
  if (is("u2", 2)) return heap.add_int(number_of<std::uint16_t>(bytes));
  if (is("u1", 1)) return heap.add_int(number_of<std::uint8_t>(bytes));
  if (is("b1", 1)) return heap.boolean(bytes.front() != 0);
  return heap.none();
}

// The word of an inert numpy.dtype; empty for what is not one or has the other byte order.
std::string_view dtype_word(const Heap& heap, Id id) {
  const Value& dtype = heap[id];
  if (dtype.kind != Kind::kObject || dtype.text != "numpy.dtype" || heap.children(id).empty()) return {};
  for (const Id given : heap.children(id)) {  // its state: (3, '<', ...)
    if (heap[given].kind != Kind::kTuple) continue;
    for (const Id part : heap.children(given)) {
      if (heap[part].kind == Kind::kString && heap[part].text == ">") return {};
    }
  }
  const Value& word = heap[heap.children(id).front()];
  return word.kind == Kind::kString ? word.text : std::string_view{};
}

Result<Id> make_scalar(Heap& heap, const Value& name, std::span<const Id> arguments) {
  if (arguments.empty()) return wrong_arguments(name);
  if (arguments.size() == 2 && heap[arguments[1]].kind == Kind::kBytes) {
    const Id plain = plain_scalar(heap, dtype_word(heap, arguments[0]), heap[arguments[1]].text);
    if (plain != heap.none()) return plain;
  }
  return heap.add_list(Kind::kObject, arguments, name.text);
}

// copyreg._reconstructor(class, base, state).
Result<Id> make_object(Heap& heap, const Value& name, std::span<const Id> arguments) {
  if (arguments.size() != 3 || heap[arguments[0]].kind != Kind::kName) return wrong_arguments(name);
  const bool has_state = heap[arguments[2]].kind != Kind::kNone;
  return reduce(heap, arguments[0], arguments.subspan(2, has_state ? 1 : 0));
}

Result<Id> make_parameter(Heap& heap, const Value& name, std::span<const Id> arguments) {
  if (arguments.size() < 2 || heap[arguments[0]].kind != Kind::kTensor) return wrong_arguments(name);
  return arguments[0];
}

}  // namespace

Result<Id> reduce(Heap& heap, Id callable, std::span<const Id> arguments) {
  const Value name = heap[callable];
  if (name.kind != Kind::kName) {
    return fail(ErrorCode::kInvalidArgument,
                "its pickle calls " + std::string(to_string(name.kind)) + ", which is not done; nothing was run");
  }
  switch (name.role) {
    case Role::kRebuildTensor:
    case Role::kRebuildTensorV3:
      return make_tensor(heap, name, arguments);
    case Role::kRefusedTensor:
      return make_refused_tensor(heap, name);
    case Role::kRebuildParameter:
      return make_parameter(heap, name, arguments);
    case Role::kDict:
    case Role::kCounter:
      return make_dictionary(heap, name, arguments);
    // Its factory is a name, and never called.
    case Role::kDefaultDict:
      return make_dictionary(heap, name, arguments.empty() ? arguments : arguments.subspan(1));
    case Role::kSet:
      return make_sequence(heap, Kind::kSet, name, arguments);
    case Role::kSize:
      return make_sequence(heap, Kind::kTuple, name, arguments);
    case Role::kByteArray:
    case Role::kEncode:
      return make_bytes(heap, name, arguments);
    case Role::kNumpyScalar:
      return make_scalar(heap, name, arguments);
    case Role::kReconstructor:
      return make_object(heap, name, arguments);
    case Role::kInert:
    case Role::kPlaceholder:
      return heap.add_list(Kind::kObject, arguments, name.text);
    case Role::kDtype:
    case Role::kStorageClass:
    case Role::kValue:
      break;
  }
  return fail(ErrorCode::kInvalidArgument, "its pickle calls '" + std::string(name.text) +
                                               "', which weights do not need; nothing was run. " +
                                               save_state_dict_remedy());
}

Result<void> set_state(Heap& heap, Id object, Id state) {
  switch (heap[object].kind) {
    case Kind::kObject:
      heap.append(object, std::span(&state, 1));
      return {};
    // Attributes of a dictionary are no part of it: `_metadata` of a state_dict.
    case Kind::kDict:
    case Kind::kSet:
      return {};
    default:
      return fail(ErrorCode::kInvalidArgument,
                  "its pickle sets attributes of " + std::string(to_string(heap[object].kind)) + "; nothing was run");
  }
}

}  // namespace modelbroker::unpickle
