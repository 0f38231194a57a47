#include "cuda_ipc/device_id.h"

#include <algorithm>

#include "shm/text.h"

namespace modelbroker {
namespace {

constexpr std::string_view kHost = "host:";
constexpr std::string_view kUuidForm = "GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx";
constexpr std::size_t kMaxHostDigits = 3;

bool is_digit(char c) { return c >= '0' && c <= '9'; }
char lower(char c) { return c >= 'A' && c <= 'F' ? static_cast<char>(c - 'A' + 'a') : c; }
bool is_hex(char c) { return is_digit(c) || (lower(c) >= 'a' && lower(c) <= 'f'); }

bool is_host_device(std::string_view text) {
  if (!text.starts_with(kHost)) return false;
  text.remove_prefix(kHost.size());
  return !text.empty() && text.size() <= kMaxHostDigits && std::ranges::all_of(text, is_digit) &&
         (text.size() == 1 || text.front() != '0');
}

bool is_gpu(std::string_view text) {
  return std::ranges::equal(text, kUuidForm, [](char c, char form) { return form == 'x' ? is_hex(c) : c == form; });
}

}  // namespace

Result<DeviceId> DeviceId::parse(std::string_view text) {
  if (is_host_device(text)) return DeviceId(std::string(text));
  if (!is_gpu(text)) {
    return fail(ErrorCode::kInvalidArgument, "'" + printable(text, 80) +
                                                 "' is not a device: use GPU-<uuid>, as nvidia-smi -L prints it, "
                                                 "or host:N for memory of this host");
  }
  std::string id = "GPU-";
  std::ranges::transform(text.substr(id.size()), std::back_inserter(id), lower);
  return DeviceId(std::move(id));
}

}  // namespace modelbroker
