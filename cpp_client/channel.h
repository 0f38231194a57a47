// Channel: a ZeroMQ DEALER to a broker, for one request at a time.
//
// Threads: one at a time. Failure: `lost` (see session.h) when the session ends meanwhile, deadline_exceeded, else what
// the broker answered.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <zmq.hpp>

#include "cpp_client/deadline.h"
#include "cpp_client/session.h"
#include "shm/error.h"
#include "shm/os.h"
#include "wire/frame.h"

namespace modelbroker::client {

// What libzmq's threads and a first session take; libzmq aborts, or hangs, where it meets the limit itself.
inline constexpr std::size_t kForAContext = 16;
// resource_exhausted if fewer descriptors than that can be opened now.
[[nodiscard]] Result<void> descriptors_left(Os& os, std::size_t wanted);

class Channel {
 public:
  // Encodes a request anew, with what is left of its deadline.
  using Encode = std::function<std::string(std::uint64_t deadline_ms)>;

  [[nodiscard]] static Result<Channel> connect(Os& os, zmq::context_t& context, const std::string& endpoint);

  // Sends, waits, and asks again where an answer may have got lost. After a failure that is not the broker's answer the
  // channel is `spoilt`: a late reply may still come.
  [[nodiscard]] Result<wire::Reply> ask(const Encode& encode, std::string_view id, std::string_view type,
                                        const Deadline& deadline, const Session& session);
  [[nodiscard]] bool spoilt() const noexcept { return spoilt_; }

 private:
  explicit Channel(zmq::socket_t socket) : socket_(std::move(socket)) {}
  [[nodiscard]] Result<wire::Reply> exchange(const Encode& encode, std::string_view id, std::string_view type,
                                             const Deadline& deadline, const Session& session);
  [[nodiscard]] bool wait(Timeout most, const Session& session);

  zmq::socket_t socket_;
  int readable_ = -1;  // libzmq's own descriptor
  bool spoilt_ = false;
};

}  // namespace modelbroker::client
