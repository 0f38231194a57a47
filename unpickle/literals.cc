// The opcodes that stand for numbers and text.
#include <bit>
#include <charconv>
#include <string>

#include "shm/text.h"
#include "unpickle/interpreter.h"

namespace modelbroker::unpickle {
namespace {

constexpr unsigned kHighestProtocol = 5;

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

void append_utf8(std::string& text, std::uint32_t code) {
  const auto put = [&](std::uint32_t byte) { text += static_cast<char>(byte); };
  if (code < 0x80) return put(code);
  if (code < 0x800) {
    put(0xC0U | (code >> 6U));
  } else {
    if (code < 0x10000) {
      put(0xE0U | (code >> 12U));
    } else {
      put(0xF0U | (code >> 18U));
      put(0x80U | ((code >> 12U) & 0x3FU));
    }
    put(0x80U | ((code >> 6U) & 0x3FU));
  }
  put(0x80U | (code & 0x3FU));
}

// The number of `count` hexadecimal digits at `at`; -1 where they are not there.
std::int64_t hex_number(std::string_view text, std::size_t at, std::size_t count) {
  if (at + count > text.size()) return -1;
  std::int64_t number = 0;
  for (const char c : text.substr(at, count)) {
    const int digit = hex_digit(c);
    if (digit < 0) return -1;
    number = number * 16 + digit;
  }
  return number;
}

tl::unexpected<Error> bad_escape() { return fail(ErrorCode::kDataLoss, "its pickle has a text with a broken escape"); }

// Python's raw-unicode-escape: Latin-1 with \uXXXX and \UXXXXXXXX.
Result<std::string> decode_unicode_escapes(std::string_view line) {
  constexpr std::int64_t kLastCodePoint = 0x10FFFF;
  std::string text;
  for (std::size_t i = 0; i < line.size(); ++i) {
    const bool is_short = line.substr(i).starts_with("\\u");
    if (!is_short && !line.substr(i).starts_with("\\U")) {
      append_utf8(text, static_cast<unsigned char>(line[i]));
      continue;
    }
    const std::size_t digits = is_short ? 4 : 8;
    const std::int64_t code = hex_number(line, i + 2, digits);
    if (code < 0 || code > kLastCodePoint) return bad_escape();
    append_utf8(text, static_cast<std::uint32_t>(code));
    i += 1 + digits;
  }
  return text;
}

// Python 2's repr of a str, without its quotes.
Result<std::string> decode_string_escapes(std::string_view quoted) {
  constexpr std::string_view kEscapes = "\\'\"nrtabfv", kMeant = "\\'\"\n\r\t\a\b\f\v";
  std::string text;
  for (std::size_t i = 0; i < quoted.size(); ++i) {
    if (quoted[i] != '\\') {
      text += quoted[i];
      continue;
    }
    if (++i == quoted.size()) return bad_escape();
    if (const std::size_t known = kEscapes.find(quoted[i]); known != std::string_view::npos) {
      text += kMeant[known];
    } else {
      const std::int64_t code = quoted[i] == 'x' ? hex_number(quoted, i + 1, 2) : -1;
      if (code < 0) return bad_escape();
      text += static_cast<char>(code);
      i += 2;
    }
  }
  return text;
}

}  // namespace

Interpreter::Step Interpreter::protocol() {
  MODELBROKER_ASSIGN(const std::uint64_t version, number(1));
  if (version <= kHighestProtocol) return {};
  return fail(ErrorCode::kUnimplemented,
              "it is a pickle of protocol " + std::to_string(version) + "; protocols up to 5 are read");
}

Interpreter::Step Interpreter::frame() {
  MODELBROKER_ASSIGN(const std::uint64_t size, number(8));
  if (size <= pickle_.size() - position_) return {};
  return fail(ErrorCode::kDataLoss, "its pickle ends inside a frame");
}

Interpreter::Step Interpreter::integer(unsigned width, bool is_signed) {
  MODELBROKER_ASSIGN(const std::uint64_t value, number(width));
  return push(heap_.add_int(is_signed ? static_cast<std::int32_t>(static_cast<std::uint32_t>(value))
                                      : static_cast<std::int64_t>(value)));
}

Interpreter::Step Interpreter::integer_line() {
  MODELBROKER_ASSIGN(std::string_view digits, line());
  if (digits == "00" || digits == "01") return push(heap_.boolean(digits == "01"));
  if (digits.ends_with('L')) digits.remove_suffix(1);
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (end != digits.data() + digits.size() || digits.empty()) {
    return fail(ErrorCode::kDataLoss, "its pickle has an int that is not a number");
  }
  if (error == std::errc::result_out_of_range) return push(heap_.add_text(Kind::kLargeInt, digits));
  return push(heap_.add_int(value));
}

Interpreter::Step Interpreter::long_bytes(unsigned width) {
  MODELBROKER_ASSIGN(const std::uint64_t size, number(width));
  MODELBROKER_ASSIGN(const std::string_view bytes, take(size));
  if (bytes.size() > sizeof(std::int64_t)) return push(heap_.add_text(Kind::kLargeInt, bytes));
  // Little-endian two's complement: the last byte's sign fills what is left.
  std::uint64_t value = !bytes.empty() && static_cast<signed char>(bytes.back()) < 0 ? ~std::uint64_t{0} : 0;
  for (std::size_t i = bytes.size(); i-- > 0;) value = (value << 8U) | static_cast<unsigned char>(bytes[i]);
  return push(heap_.add_int(static_cast<std::int64_t>(value)));
}

Interpreter::Step Interpreter::real() {
  MODELBROKER_ASSIGN(const std::uint64_t bits, number(8));
  return push(heap_.add({.kind = Kind::kFloat, .real = std::bit_cast<double>(__builtin_bswap64(bits))}));
}

Interpreter::Step Interpreter::real_line() {
  MODELBROKER_ASSIGN(const std::string_view digits, line());
  double value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error == std::errc::invalid_argument || end != digits.data() + digits.size()) {
    return fail(ErrorCode::kDataLoss, "its pickle has a float that is not a number");
  }
  return push(heap_.add({.kind = Kind::kFloat, .real = value}));
}

Interpreter::Step Interpreter::text(Kind kind, unsigned width) {
  MODELBROKER_ASSIGN(const std::uint64_t size, number(width));
  MODELBROKER_ASSIGN(const std::string_view bytes, take(size));
  return push(heap_.add_text(kind, bytes));
}

// A str of Python 2 may be either.
Interpreter::Step Interpreter::text_of_python2(unsigned width) {
  MODELBROKER_ASSIGN(const std::uint64_t size, number(width));
  MODELBROKER_ASSIGN(const std::string_view bytes, take(size));
  return push(heap_.add_text(valid_utf8(bytes) ? Kind::kString : Kind::kBytes, bytes));
}

Interpreter::Step Interpreter::quoted_line() {
  MODELBROKER_ASSIGN(const std::string_view quoted, line());
  const bool is_quoted =
      quoted.size() >= 2 && quoted.front() == quoted.back() && (quoted.front() == '\'' || quoted.front() == '"');
  if (!is_quoted) return fail(ErrorCode::kDataLoss, "its pickle has a string without quotes");
  MODELBROKER_ASSIGN(std::string decoded, decode_string_escapes(quoted.substr(1, quoted.size() - 2)));
  const Kind kind = valid_utf8(decoded) ? Kind::kString : Kind::kBytes;
  return push(heap_.add_text(kind, heap_.keep(std::move(decoded))));
}

Interpreter::Step Interpreter::unicode_line() {
  MODELBROKER_ASSIGN(const std::string_view escaped, line());
  MODELBROKER_ASSIGN(std::string decoded, decode_unicode_escapes(escaped));
  return push(heap_.add_text(Kind::kString, heap_.keep(std::move(decoded))));
}

}  // namespace modelbroker::unpickle
