// Pickles as text for tests: parts that C++ source can write, and a value shown as Python would.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "unpickle/heap.h"

namespace modelbroker::testing {

[[nodiscard]] inline std::string little_endian(std::uint64_t number, unsigned width) {
  std::string bytes;
  for (unsigned i = 0; i < width; ++i) bytes += static_cast<char>((number >> (8 * i)) & 0xFFU);
  return bytes;
}

// Opcodes of protocol 2.
[[nodiscard]] inline std::string name(const std::string& module, const std::string& attribute) {
  return "c" + module + "\n" + attribute + "\n";
}
[[nodiscard]] inline std::string text(const std::string& value) { return "X" + little_endian(value.size(), 4) + value; }
[[nodiscard]] inline std::string integer(std::uint32_t value) { return "J" + little_endian(value, 4); }

// ("storage", class, key, "cpu", count) as a persistent id.
[[nodiscard]] inline std::string storage(const std::string& type, const std::string& key, const std::string& count) {
  return "(" + text("storage") + name("torch", type) + text(key) + text("cpu") + count + "tQ";
}

// A tensor of torch._utils._rebuild_tensor_v2; shape and strides are opcodes of tuples.
[[nodiscard]] inline std::string tensor(const std::string& from, const std::string& offset, const std::string& shape,
                                        const std::string& strides, const std::string& further = "\x89N") {
  return name("torch._utils", "_rebuild_tensor_v2") + "(" + from + offset + shape + strides + further + "tR";
}
// Two float32 of storage 0.
[[nodiscard]] inline std::string two_floats() {
  return tensor(storage("FloatStorage", "0", "K\x02"), std::string("K\0", 2), "K\x02\x85", "K\x01\x85");
}

// As Python's repr, nearly: names by their module, objects as calls. Deeper than ten levels: "...".
[[nodiscard]] inline std::string shown(const unpickle::Heap& heap, unpickle::Id id, int depth = 0) {
  using unpickle::Kind;
  const unpickle::Value& value = heap[id];
  const auto listed = [&](const std::string& open, const std::string& close) {
    if (depth > 10) return std::string("...");
    std::string all = open;
    for (const unpickle::Id child : heap.children(id)) {
      if (all != open) all += ", ";
      all += shown(heap, child, depth + 1);
    }
    return all + close;
  };
  switch (value.kind) {
    case Kind::kNone:
      return "None";
    case Kind::kBool:
      return value.number != 0 ? "True" : "False";
    case Kind::kInt:
      return std::to_string(value.number);
    case Kind::kLargeInt:
      return "large";
    case Kind::kFloat:
      return std::to_string(value.real);
    case Kind::kString:
      return "'" + std::string(value.text) + "'";
    case Kind::kBytes:
      return "b'" + std::string(value.text) + "'";
    case Kind::kTuple:
      return listed("(", ")");
    case Kind::kList:
      return listed("[", "]");
    case Kind::kSet:
      return listed("{", "}");
    case Kind::kDict:
      return listed("dict(", ")");
    case Kind::kName:
      return std::string(value.text);
    case Kind::kObject:
      return listed(std::string(value.text) + "(", ")");
    case Kind::kStorage:
      return "storage";
    case Kind::kTensor:
      return "tensor";
  }
  return "?";
}

}  // namespace modelbroker::testing
