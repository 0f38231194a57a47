#include "broker/server/notify.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <charconv>
#include <cstddef>
#include <cstdlib>
#include <cstring>

namespace modelbroker {
namespace {

std::string environment(const char* name) {
  const char* const value = std::getenv(name);
  return value == nullptr ? "" : value;
}

std::optional<std::uint64_t> number(const std::string& text) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

}  // namespace

// These calls are not Os's: their failure changes nothing, so no test needs to make it happen.
Notifier::Notifier() : address_(environment("NOTIFY_SOCKET")) {
  if (address_.starts_with('@')) address_.front() = '\0';
  if (address_.size() < 2 || address_.size() >= sizeof sockaddr_un::sun_path) return;
  socket_ = Fd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  const auto micros = number(environment("WATCHDOG_USEC"));
  const std::string whose = environment("WATCHDOG_PID");
  if (!micros || *micros == 0 || *micros > 1'000'000'000'000) return;
  if (!whose.empty() && number(whose) != static_cast<std::uint64_t>(::getpid())) return;
  // Twice as often as asked, so that one late turn is no death.
  watchdog_ = std::chrono::microseconds(*micros) / 2;
}

void Notifier::send(std::string_view lines) const noexcept {
  if (!socket_) return;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, address_.data(), address_.size());
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + address_.size());
  (void)::sendto(socket_.get(), lines.data(), lines.size(), MSG_DONTWAIT | MSG_NOSIGNAL,
                 reinterpret_cast<const sockaddr*>(&address), size);
}

}  // namespace modelbroker
