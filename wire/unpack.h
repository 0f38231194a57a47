// Msgpack to values: a frame is parsed and checked whole, then read field by field. Private to this room, as is
// msgpack.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <map>
#include <msgpack.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "shm/error.h"
#include "wire/pack.h"

namespace modelbroker::wire {

using Object = msgpack::object;

// A map within the limits, with unique string keys, UTF-8 only, no binary, nothing behind it; else invalid_argument.
[[nodiscard]] Result<msgpack::object_handle> unpack_frame(std::string_view bytes, std::size_t limit,
                                                          std::size_t most_elements);

inline std::string_view text_of(const Object& object) { return {object.via.str.ptr, object.via.str.size}; }

inline const Object* find(const Object& map, std::string_view key) {
  for (std::uint32_t i = 0; i < map.via.map.size; ++i) {
    const auto& pair = map.via.map.ptr[i];
    if (pair.key.type == msgpack::type::STR && text_of(pair.key) == key) return &pair.val;
  }
  return nullptr;
}

inline bool unpack(const Object& object, std::string& value) {
  if (object.type != msgpack::type::STR) return false;
  value.assign(object.via.str.ptr, object.via.str.size);
  return true;
}
inline bool unpack(const Object& object, bool& value) {
  if (object.type != msgpack::type::BOOLEAN) return false;
  value = object.via.boolean;
  return true;
}
inline bool unpack(const Object& object, std::uint64_t& value) {
  if (object.type != msgpack::type::POSITIVE_INTEGER) return false;
  value = object.via.u64;
  return true;
}
inline bool unpack(const Object& object, double& value) {
  switch (object.type) {
    case msgpack::type::FLOAT32:
    case msgpack::type::FLOAT64:
      value = object.via.f64;
      return true;
    case msgpack::type::POSITIVE_INTEGER:
      value = static_cast<double>(object.via.u64);
      return true;
    case msgpack::type::NEGATIVE_INTEGER:
      value = static_cast<double>(object.via.i64);
      return true;
    default:
      return false;
  }
}
inline bool unpack(const Object& object, std::optional<double>& value) { return unpack(object, value.emplace()); }
template <Message M>
bool unpack(const Object& object, M& message);
template <class T>
bool unpack(const Object& object, std::map<std::string, T>& values);

template <class T>
bool unpack(const Object& object, std::vector<T>& values) {
  if (object.type != msgpack::type::ARRAY) return false;
  values.clear();
  values.reserve(object.via.array.size);
  for (std::uint32_t i = 0; i < object.via.array.size; ++i) {
    if (!unpack(object.via.array.ptr[i], values.emplace_back())) return false;
  }
  return true;
}

template <class T>
bool unpack(const Object& object, std::map<std::string, T>& values) {
  if (object.type != msgpack::type::MAP) return false;
  values.clear();
  for (std::uint32_t i = 0; i < object.via.map.size; ++i) {
    const auto& pair = object.via.map.ptr[i];
    if (!unpack(pair.val, values[std::string(text_of(pair.key))])) return false;
  }
  return true;
}

template <class T>
constexpr std::string_view kind_of() {
  if constexpr (std::same_as<T, std::string>) return "a string";
  if constexpr (std::same_as<T, bool>) return "a bool";
  if constexpr (std::same_as<T, std::uint64_t>) return "an unsigned integer";
  if constexpr (std::same_as<T, double> || std::same_as<T, std::optional<double>>) return "a number";
  if constexpr (Message<T>) return "a map";
  return "an array or map of the documented kind";
}

template <Message M>
Result<void> unpack_fields(const Object& object, M& message) {
  if (object.type != msgpack::type::MAP) {
    return fail(ErrorCode::kInvalidArgument, "'data' must be a map; docs/protocol.md has its fields");
  }
  Result<void> outcome;
  M::fields(message, [&](const char* name, auto& value, Need need = Need::kOptional) {
    if (!outcome) return;
    const Object* found = find(object, name);
    if (found == nullptr || found->type == msgpack::type::NIL) {
      if (need == Need::kRequired) {
        outcome = fail(ErrorCode::kInvalidArgument, std::string("field '") + name + "' is missing");
      }
      return;
    }
    if (!unpack(*found, value)) {
      outcome = fail(ErrorCode::kInvalidArgument, std::string("field '") + name + "' must be " +
                                                      std::string(kind_of<std::remove_cvref_t<decltype(value)>>()));
    }
  });
  return outcome;
}

template <Message M>
bool unpack(const Object& object, M& message) {
  return object.type == msgpack::type::MAP && unpack_fields(object, message).has_value();
}

}  // namespace modelbroker::wire
