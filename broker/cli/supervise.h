// supervise: a small parent that starts a broker again when it dies, for machines without a service manager.
//
// Threads: one, and there must be no other: it forks. SIGTERM, SIGINT and SIGHUP go on to the broker. Every broker
// adopts the blocks of the one before. When the parent itself is killed, the broker goes on serving (a broker is worth
// more than its supervisor), and a next supervisor is refused until it is stopped.
// Failure: none of its own; the exit status is the broker's.
#pragma once

#include <functional>

namespace modelbroker::cli {

// Said by the broker once it serves.
using Serving = std::function<void()>;

// `prepare` runs here before each start and returns 0, or the exit status with which to end if nothing has served yet;
// `broker` runs in the child and returns its exit status.
// Ends when the broker ends cleanly or was told to stop, or fails by itself before any has served.
int supervise(const std::function<int()>& prepare, const std::function<int(const Serving&)>& broker);

}  // namespace modelbroker::cli
