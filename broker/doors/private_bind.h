// Binds a ZeroMQ socket so that its file is our user's alone from its first moment.
//
// Threads: the loop's only: the process's umask changes meanwhile.
#pragma once

#include <string>
#include <zmq.hpp>

#include "shm/error.h"

namespace modelbroker {

[[nodiscard]] Result<void> bind_private(zmq::socket_t& socket, const std::string& endpoint);

}  // namespace modelbroker
