// SafetensorsFile: files as the safetensors format has them, and as it does not.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cstdint>
#include <fstream>
#include <string>
#include <string_view>

#include "shm/fd.h"

namespace modelbroker::testing {

// The 8 bytes before the header.
[[nodiscard]] inline std::string length_prefix(std::uint64_t length) {
  std::string bytes;
  for (unsigned i = 0; i < 8; ++i) bytes += static_cast<char>((length >> (8 * i)) & 0xFFU);
  return bytes;
}

[[nodiscard]] inline std::string safetensors_bytes(std::string_view header, std::string_view data = "") {
  return length_prefix(header.size()) + std::string(header) + std::string(data);
}

// "name":{"dtype":"U8","shape":[size],"data_offsets":[begin,begin+size]}
[[nodiscard]] inline std::string u8_tensor(const std::string& name, std::uint64_t begin, std::uint64_t size) {
  return "\"" + name + R"(":{"dtype":"U8","shape":[)" + std::to_string(size) + R"(],"data_offsets":[)" +
         std::to_string(begin) + "," + std::to_string(begin + size) + "]}";
}

inline void write_file(const std::string& path, std::string_view bytes) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

// As the broker opens what a client names: never waits.
[[nodiscard]] inline Fd open_source(const std::string& path) {
  return Fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
}

}  // namespace modelbroker::testing
