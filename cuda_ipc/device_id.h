// DeviceId: which device, in the same words in every process of the host.
//
// `GPU-<uuid>`, as nvidia-smi prints it, or `host:N`, memory of this host. Never an index: cuda:0 is another device in
// another process. Threads: a value.
#pragma once

#include <compare>
#include <string>
#include <string_view>
#include <utility>

#include "shm/error.h"

namespace modelbroker {

class DeviceId {
 public:
  // Hexadecimal digits may be of either case. Otherwise invalid_argument, which says how to name a device.
  [[nodiscard]] static Result<DeviceId> parse(std::string_view text);

  [[nodiscard]] const std::string& text() const noexcept { return text_; }
  [[nodiscard]] bool is_host() const noexcept { return text_.starts_with("host:"); }
  friend auto operator<=>(const DeviceId&, const DeviceId&) = default;

 private:
  explicit DeviceId(std::string text) : text_(std::move(text)) {}
  std::string text_;
};

}  // namespace modelbroker
