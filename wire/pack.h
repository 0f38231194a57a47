// Values to msgpack: each struct of wire/messages.h is a map of its fields. Private to this room, as is msgpack.
#pragma once

#include <cstdint>
#include <map>
#include <msgpack.hpp>
#include <optional>
#include <string>
#include <vector>

#include "wire/messages.h"

namespace modelbroker::wire {

// What a packer writes to: the string that is sent, so that nothing is copied out of it.
struct Bytes {
  Bytes() { text.reserve(kUsual); }
  void write(const char* at, std::size_t size) { text.append(at, size); }
  static constexpr std::size_t kUsual = 250;  // most messages are shorter
  std::string text;
};

using Packer = msgpack::packer<Bytes>;

template <class T>
concept Message = requires(T& value) {
  T::fields(value, [](auto&&...) {});
};

inline void pack(Packer& packer, const std::string& value) { packer.pack(value); }
inline void pack(Packer& packer, bool value) { packer.pack(value); }
inline void pack(Packer& packer, std::uint64_t value) { packer.pack(value); }
inline void pack(Packer& packer, double value) { packer.pack(value); }
inline void pack(Packer& packer, const std::optional<double>& value) {
  if (value) {
    packer.pack(*value);
  } else {
    packer.pack_nil();
  }
}
template <Message M>
void pack(Packer& packer, const M& message);
template <class T>
void pack(Packer& packer, const std::vector<T>& values);
template <class T>
void pack(Packer& packer, const std::map<std::string, T>& values);

template <Message M>
void pack(Packer& packer, const M& message) {
  std::uint32_t count = 0;
  M::fields(message, [&](const char*, const auto&, Need = Need::kOptional) { ++count; });
  packer.pack_map(count);
  M::fields(message, [&](const char* name, const auto& value, Need = Need::kOptional) {
    packer.pack(name);
    pack(packer, value);
  });
}

template <class T>
void pack(Packer& packer, const std::vector<T>& values) {
  packer.pack_array(static_cast<std::uint32_t>(values.size()));
  for (const T& value : values) pack(packer, value);
}

template <class T>
void pack(Packer& packer, const std::map<std::string, T>& values) {
  packer.pack_map(static_cast<std::uint32_t>(values.size()));
  for (const auto& [key, value] : values) {
    packer.pack(key);
    pack(packer, value);
  }
}

}  // namespace modelbroker::wire
