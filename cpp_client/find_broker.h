// Where a broker answers, of the places that are to be tried: for all that connect. Threads: any.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "cpp_client/deadline.h"
#include "cpp_client/options.h"
#include "cpp_client/session.h"
#include "shm/error.h"
#include "wire/endpoint.h"

namespace modelbroker::client {

// "no broker answers at ...", with the remedy.
[[nodiscard]] Error no_broker(const std::vector<wire::Endpoint>& tried);

// What `open` gives for the first endpoint where it does not fail as `lost`. Where it does everywhere, it is tried
// again until the options' timeout or the deadline has passed: a broker may be just starting. So may the user's own
// where the system's refuses: that refusal is the answer only if none has started by then.
template <class Open>
[[nodiscard]] auto find_broker(const ConnectOptions& options, const Deadline& deadline, Open open)
    -> decltype(open(wire::Endpoint())) {
  constexpr Timeout kPause{20};
  MODELBROKER_ASSIGN(const auto endpoints, wire::endpoints_to_try(options.endpoint));
  const auto end = Deadline::Clock::now() + std::min(options.timeout, Deadline::kLongest);
  while (true) {
    std::optional<Error> refused;
    for (const auto& endpoint : endpoints) {
      auto opened = open(endpoint);
      if (opened) return opened;
      const bool may_start = endpoints.size() > 1 && opened.error().code == ErrorCode::kPermissionDenied;
      if (!may_start && !is_lost(opened.error())) return opened;
      if (may_start) refused = std::move(opened.error());
    }
    if (Deadline::Clock::now() >= end || deadline.passed()) {
      return tl::unexpected(refused ? std::move(*refused) : no_broker(endpoints));
    }
    std::this_thread::sleep_for(kPause);
  }
}

}  // namespace modelbroker::client
