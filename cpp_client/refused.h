// What to tell a user who may not open a broker's folder or socket. Threads: any.
#pragma once

#include <sys/types.h>

#include <string>

#include "shm/error.h"
#include "wire/endpoint.h"

namespace modelbroker::client {

// permission_denied, with whom that broker serves and what to do about it: which group to join, and how.
[[nodiscard]] Error refused(const wire::Endpoint& endpoint);

}  // namespace modelbroker::client
