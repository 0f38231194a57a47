// Text: what may be shown, stored or sent.
//
// Threads: pure functions.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace modelbroker {

// Strings that come from a peer and will be shown or stored: 1 to 255 bytes of UTF-8 without control, invisible and
// direction-changing characters, and not like a path: no part between slashes is empty, "." or "..".
[[nodiscard]] bool valid_model_name(std::string_view name) noexcept;
// With "_" in the place of each such character, and of each byte that is not UTF-8.
[[nodiscard]] std::string replace_unseen(std::string_view text);
[[nodiscard]] bool valid_utf8(std::string_view text) noexcept;
// Clipped and with control and invisible characters escaped: fit for a log line or a terminal.
[[nodiscard]] std::string printable(std::string_view text, std::size_t most = 200);

}  // namespace modelbroker
