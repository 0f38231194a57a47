#include "unpickle/json.h"

#include <array>
#include <charconv>
#include <cmath>

namespace modelbroker::unpickle {

void JsonText::raw(std::string_view text) {
  overflowed_ = overflowed_ || text.size() > limit_ - text_.size();
  if (!overflowed_) text_ += text;
}

void JsonText::string(std::string_view text) {
  constexpr std::string_view kHex = "0123456789abcdef";
  raw("\"");
  std::size_t plain = 0;  // where the text begins that is not written yet
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if (byte >= 0x20 && byte != '"' && byte != '\\' && byte != 0x7F) continue;
    raw(text.substr(plain, i - plain));
    const std::array<char, 6> escape{'\\', 'u', '0', '0', kHex[byte >> 4U], kHex[byte & 0xFU]};
    raw({escape.data(), escape.size()});
    plain = i + 1;
  }
  raw(text.substr(plain));
  raw("\"");
}

void JsonText::number(double number) {
  if (std::isnan(number)) return raw("\"NaN\"");
  if (std::isinf(number)) return raw(number > 0 ? "\"Infinity\"" : "\"-Infinity\"");
  std::array<char, 40> digits{};
  const auto [end, error] = std::to_chars(digits.data(), digits.data() + digits.size(), number);
  const std::string_view text(digits.data(), static_cast<std::size_t>(end - digits.data()));
  raw(text);
  // Whole numbers stay floats for who reads them.
  if (text.find_first_of(".e") == std::string_view::npos) raw(".0");
}

}  // namespace modelbroker::unpickle
