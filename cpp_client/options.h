// What every way to a broker is told. Threads: values.
#pragma once

#include <chrono>
#include <string>

namespace modelbroker {

// Zero: as long as it takes. A call may end half a second after it: the broker's own word is worth waiting for.
using Timeout = std::chrono::milliseconds;

struct ConnectOptions {
  std::string endpoint{};  // "ipc:///<run>/broker.sock"; "": MODELBROKER_ENDPOINT, else the default places
  Timeout timeout{2000};   // how long to wait for a broker that is just starting, or busy; zero: one try
};

namespace client {
using modelbroker::ConnectOptions;
using modelbroker::Timeout;
}  // namespace client

}  // namespace modelbroker
