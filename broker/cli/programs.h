// Which programs run: this one, and the one behind a connection. Threads: any.
//
// Programs of one installation lie in one folder: a helper of ours is found next to this_program().
#pragma once

#include <cstdint>
#include <string>

#include "cpp_client/connection.h"

namespace modelbroker::cli {

// Its path, also when it was started by another name; "modelbroker" where /proc is not to be read.
[[nodiscard]] std::string this_program();

// A broker, as far as this process can see it.
struct BrokerProgram {
  std::int64_t pid = 0;  // 0: it runs in another pid namespace
  std::string path;      // empty: another user's, or not visible
};
[[nodiscard]] BrokerProgram program_of(Os& os, const client::Connection& connection);

// "pid 12, /usr/bin/modelbroker": what is known.
[[nodiscard]] std::string to_text(const BrokerProgram& program);

}  // namespace modelbroker::cli
