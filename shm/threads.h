// Threads that this process can still start: asked for before a library takes them, since libzmq aborts where it gets
// none.
//
// Any thread may call these. Failure: resource_exhausted, with the limits that may be meant.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>
#include <thread>

#include "shm/error.h"

namespace modelbroker {

// What a ZeroMQ context starts with its first socket: an I/O thread and a reaper.
inline constexpr std::size_t kThreadsOfAContext = 2;

// resource_exhausted unless so many can run at once now: they are started and ended. `what` needs them.
[[nodiscard]] Result<void> threads_left(std::size_t count, std::string_view what);

// That refusal.
[[nodiscard]] Error no_thread_left(std::string_view what);

// A thread that runs none of the program's signal handlers. Throws std::system_error where there is none left.
[[nodiscard]] std::thread thread_without_signals(std::function<void()> work);

}  // namespace modelbroker
