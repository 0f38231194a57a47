// Sizes and times as people write and read them. Threads: any.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "broker/base/clock.h"
#include "shm/error.h"

namespace modelbroker {

// "4GiB", "1.5 GB", "1048576": bytes. GiB is binary, GB decimal. invalid_argument says what is allowed.
[[nodiscard]] Result<std::uint64_t> parse_size(std::string_view text);
// "2.6 GiB": for people.
[[nodiscard]] std::string format_size(std::uint64_t bytes);

// "90", "1.5s", "500ms", "5m", "2h", "3d": seconds, which may be below zero.
[[nodiscard]] std::optional<double> parse_seconds(std::string_view text);
// A time to keep something, as above; below zero, for ever, as -1 ns. invalid_argument says what is allowed.
[[nodiscard]] Result<Duration> parse_keep_alive(std::string_view text);
[[nodiscard]] Duration keep_alive_from_seconds(double seconds);

}  // namespace modelbroker
