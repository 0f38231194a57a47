// What the verbs that ask a broker share: the connection, and how an answer is shown. Threads: one.
#pragma once

#include <memory>
#include <string>

#include "broker/cli/commands.h"
#include "broker/cli/json.h"
#include "broker/cli/output.h"
#include "cpp_client/connection.h"
#include "shm/text.h"

namespace modelbroker::cli {

inline constexpr client::Timeout kShort{30000};  // requests that only look at the books
inline constexpr client::Timeout kNoEnd{0};      // loads: a terminal has Ctrl-C

[[nodiscard]] inline Os& plain_os() {
  static const std::unique_ptr<Os> os = make_plain_os();
  return *os;
}

// Text from a peer or a file, fit for a terminal.
[[nodiscard]] inline std::string shown(const std::string& text) { return printable(text, 4096); }

// The pages of a model's blocks; "" where it has none.
[[nodiscard]] inline std::string pages_of(const std::vector<wire::ModelBlock>& blocks) {
  std::string kinds;
  for (const wire::ModelBlock& block : blocks) {
    if (kinds.find(block.page_kind) == std::string::npos) kinds += (kinds.empty() ? "" : ", ") + block.page_kind;
  }
  return kinds;
}

inline void print(const Json& json) {
  std::printf("%s\n", json.dump(2, ' ', false, Json::error_handler_t::replace).c_str());
}

// Runs `work` with a connection and turns its error into an exit code.
template <class Work>
int with_broker(const Common& common, Work work, const client::Deadline& deadline = client::Deadline(kNoEnd)) {
  auto connection = client::Connection::connect(plain_os(), {.endpoint = common.endpoint}, deadline);
  if (!connection) return report(connection.error(), common.json);
  const Result<void> outcome = work(*connection);
  return outcome ? kExitOk : report(outcome.error(), common.json);
}

}  // namespace modelbroker::cli
