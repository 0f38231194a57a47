// JSON as text, in one pass and within a limit.
//
// Threads: a value of one thread. Failure: past the limit nothing more is written and overflowed() says so.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

namespace modelbroker::unpickle {

class JsonText {
 public:
  explicit JsonText(std::size_t limit = std::numeric_limits<std::size_t>::max()) noexcept : limit_(limit) {}

  void raw(std::string_view text);
  // In quotes. REQUIRES: UTF-8.
  void string(std::string_view text);
  void number(std::int64_t number) { raw(std::to_string(number)); }
  void number(std::uint64_t number) { raw(std::to_string(number)); }
  // JSON has no NaN and no infinity: they are the strings "NaN", "Infinity" and "-Infinity".
  void number(double number);

  [[nodiscard]] std::size_t size() const noexcept { return text_.size(); }
  void cut(std::size_t size) { text_.resize(size); }
  [[nodiscard]] bool overflowed() const noexcept { return overflowed_; }
  [[nodiscard]] std::string& text() noexcept { return text_; }

 private:
  std::string text_;
  std::size_t limit_;
  bool overflowed_ = false;
};

}  // namespace modelbroker::unpickle
