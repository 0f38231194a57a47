// What fuzz targets share. A target is LLVMFuzzerTestOneInput: libFuzzer calls it (preset fuzz), or corpus_main.cc
// with the files of tests/fuzz/corpus/<target> (every other preset). It ends the process when a promise is broken.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string_view>

#include "shm/error.h"
#include "shm/text.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace modelbroker::testing {

inline void require(bool holds, std::string_view what) {
  if (holds) return;
  std::fprintf(stderr, "BROKEN PROMISE: %.*s\n", static_cast<int>(what.size()), what.data());
  std::abort();
}

// Every refusal can be sent to a client and shown.
inline void require_presentable(const Error& error) {
  require(!error.message.empty() && error.message.size() < 2000, "a message is short");
  require(printable(error.message, 2000) == error.message, "a message is printable UTF-8");
}

// Takes numbers off the front of the input; zeros when there is nothing left.
class Input {
 public:
  Input(const std::uint8_t* data, std::size_t size) : rest_(data, size) {}

  template <class Number>
  [[nodiscard]] Number number() {
    Number value{};
    const std::size_t have = std::min(sizeof value, rest_.size());
    if (have > 0) std::memcpy(&value, rest_.data(), have);
    rest_ = rest_.subspan(have);
    return value;
  }
  [[nodiscard]] std::span<const std::byte> bytes(std::size_t most) {
    const auto taken = rest_.first(std::min(most, rest_.size()));
    rest_ = rest_.subspan(taken.size());
    return std::as_bytes(taken);
  }
  [[nodiscard]] std::span<const std::byte> all() { return bytes(rest_.size()); }
  [[nodiscard]] bool empty() const { return rest_.empty(); }

 private:
  std::span<const std::uint8_t> rest_;
};

[[nodiscard]] inline std::string_view text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace modelbroker::testing
