// What may be shown, stored or sent as text.
#include <algorithm>

#include "wire/frame.h"

namespace modelbroker::wire {
namespace {

// Length of the UTF-8 sequence that begins `text`, or 0 (RFC 3629: no overlong forms, no surrogates).
std::size_t sequence_length(std::string_view text) noexcept {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const auto follows = [&](std::size_t i, unsigned low = 0x80, unsigned high = 0xBF) {
    return i < text.size() && byte(i) >= low && byte(i) <= high;
  };
  const unsigned lead = byte(0);
  if (lead < 0x80) return 1;
  if (lead >= 0xC2 && lead <= 0xDF) return follows(1) ? 2 : 0;
  if (lead >= 0xE0 && lead <= 0xEF) {
    const unsigned low = lead == 0xE0 ? 0xA0 : 0x80;
    const unsigned high = lead == 0xED ? 0x9F : 0xBF;
    return follows(1, low, high) && follows(2) ? 3 : 0;
  }
  if (lead >= 0xF0 && lead <= 0xF4) {
    const unsigned low = lead == 0xF0 ? 0x90 : 0x80;
    const unsigned high = lead == 0xF4 ? 0x8F : 0xBF;
    return follows(1, low, high) && follows(2) && follows(3) ? 4 : 0;
  }
  return 0;
}

bool is_control(unsigned char byte) noexcept { return byte < 0x20 || byte == 0x7F; }

}  // namespace

bool valid_utf8(std::string_view text) noexcept {
  while (true) {
    const auto* const other = std::ranges::find_if(text, [](char c) { return static_cast<unsigned char>(c) >= 0x80; });
    text.remove_prefix(static_cast<std::size_t>(other - text.begin()));
    if (text.empty()) return true;
    const std::size_t length = sequence_length(text);
    if (length == 0) return false;
    text.remove_prefix(length);
  }
}

bool valid_model_name(std::string_view name) noexcept {
  if (name.empty() || name.size() > 255 || name.front() == '/' || !valid_utf8(name)) return false;
  for (const char c : name) {
    if (is_control(static_cast<unsigned char>(c))) return false;
  }
  return true;
}

std::string printable(std::string_view text, std::size_t most) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out;
  while (!text.empty()) {
    if (out.size() >= most) return out + "...";
    const auto byte = static_cast<unsigned char>(text.front());
    const std::size_t length = sequence_length(text);
    // U+0080 to U+009F are control characters too (a terminal may obey them).
    const bool c1 = length == 2 && byte == 0xC2 && static_cast<unsigned char>(text[1]) < 0xA0;
    if (length == 0 || is_control(byte) || c1) {
      out += {'\\', 'x', kHex[byte >> 4U], kHex[byte & 15U]};
      text.remove_prefix(1);
    } else {
      out.append(text.substr(0, length));
      text.remove_prefix(length);
    }
  }
  return out;
}

}  // namespace modelbroker::wire
