#include "broker/doors/private_bind.h"

#include <sys/stat.h>

namespace modelbroker {

Result<void> bind_private(zmq::socket_t& socket, const std::string& endpoint) {
  const mode_t before = ::umask(0177);
  const int failed = ::zmq_bind(socket.handle(), endpoint.c_str()) == 0 ? 0 : ::zmq_errno();
  ::umask(before);
  if (failed != 0) return fail_errno(failed, "binding " + endpoint);
  return {};
}

}  // namespace modelbroker
