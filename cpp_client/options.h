// What every way to a broker is told. Threads: values.
#pragma once

#include <chrono>
#include <string>

namespace modelbroker {

using Timeout = std::chrono::milliseconds;  // zero: as long as it takes

struct ConnectOptions {
  std::string endpoint{};  // "ipc:///<run>/broker.sock"; "": MODELBROKER_ENDPOINT, else the default places
  Timeout timeout{2000};   // how long to wait for a broker that is just starting, or busy
};

namespace client {
using modelbroker::ConnectOptions;
using modelbroker::Timeout;
}  // namespace client

}  // namespace modelbroker
