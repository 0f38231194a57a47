// Connection: a C++ program's line to a broker: requests over ZeroMQ, descriptors over the fd socket.
//
// Threads: one thread at a time. Failure: unavailable (with the remedy) when no broker answers,
// deadline_exceeded when it takes longer than the timeout, else the error that the broker answered.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cpp_client/deadline.h"
#include "cpp_client/options.h"
#include "shm/error.h"
#include "shm/fd.h"
#include "shm/os.h"
#include "wire/endpoint.h"
#include "wire/frame.h"

namespace modelbroker::client {

class Connection {
 public:
  // `options.timeout` is for a broker to come; one that is there has until `deadline`, and 10 s at most, to answer.
  [[nodiscard]] static Result<Connection> connect(Os& os, const ConnectOptions& options,
                                                  const Deadline& deadline = Deadline(Timeout{0}));
  Connection(Connection&&) noexcept;
  Connection& operator=(Connection&&) noexcept;
  ~Connection();  // ends the session

  [[nodiscard]] const wire::Endpoint& endpoint() const noexcept;
  [[nodiscard]] const wire::SessionHelloReply& hello() const noexcept;
  // For poll(): readable when the broker has gone away.
  [[nodiscard]] int descriptor() const noexcept;

  // One round trip. unavailable if the broker goes away meanwhile.
  template <class Reply, class M>
  [[nodiscard]] Result<Reply> request(std::string_view type, const M& data, Timeout timeout) {
    MODELBROKER_ASSIGN(
        auto reply,
        exchange(
            type, [&](const wire::RequestHead& head) { return wire::encode_request(head, data); }, timeout));
    return reply.template data<Reply>();
  }

  // Passes a read-only descriptor to the broker; the handle goes into load_model.file or attach.file.
  [[nodiscard]] Result<std::string> offer_file(const Fd& file, const Deadline& deadline = Deadline(Timeout{0}));
  // A fresh read-only descriptor of a block that this session holds a lease on.
  [[nodiscard]] Result<Fd> open_block(const std::string& block, const Deadline& deadline = Deadline(Timeout{0}));

 private:
  struct State;
  explicit Connection(std::unique_ptr<State> state) noexcept;
  using Encode = std::function<std::string(const wire::RequestHead&)>;
  [[nodiscard]] Result<wire::Reply> exchange(std::string_view type, const Encode& encode, Timeout timeout);
  std::unique_ptr<State> state_;
};

// Opens a file to be offered: no fifo hangs it, and what is no regular file is refused by name.
[[nodiscard]] Result<Fd> open_source(Os& os, const std::string& path);

}  // namespace modelbroker::client
