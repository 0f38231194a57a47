// Where a broker's sockets are: docs/protocol.md's first table.
//
// Threads: any. Failure: invalid_argument for an endpoint that is no ipc:// path or too long for a socket.
#pragma once

#include <string>
#include <vector>

#include "shm/error.h"

namespace modelbroker::wire {

// The sockets of one broker, and its run directory. `owned`: a default place where anybody may make such a folder, so
// that only a broker of our own uid or root's is to be trusted.
struct Endpoint {
  std::string run_directory;
  bool owned = false;
  [[nodiscard]] std::string broker_path() const { return run_directory + "/broker.sock"; }
  [[nodiscard]] std::string broker() const { return "ipc://" + broker_path(); }
  [[nodiscard]] std::string fds() const { return run_directory + "/fds.sock"; }
  [[nodiscard]] std::string events_path() const { return run_directory + "/events.sock"; }
  [[nodiscard]] std::string events() const { return "ipc://" + events_path(); }

  // From "ipc://<run>/broker.sock", the form of MODELBROKER_ENDPOINT.
  [[nodiscard]] static Result<Endpoint> parse(const std::string& text);
  // From a run directory; refuses one whose socket paths would not fit in sun_path (107 bytes).
  [[nodiscard]] static Result<Endpoint> in(const std::string& run_directory);
};

// Where `serve` puts its sockets by default: root /run/modelbroker; else $XDG_RUNTIME_DIR/modelbroker;
// else /tmp/modelbroker-<uid>.
[[nodiscard]] std::string default_run_directory();
// Where a client looks: `explicit_endpoint` or MODELBROKER_ENDPOINT alone, if set; else the user's run
// directory, then /run/modelbroker.
[[nodiscard]] Result<std::vector<Endpoint>> endpoints_to_try(const std::string& explicit_endpoint);

}  // namespace modelbroker::wire
