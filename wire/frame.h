// Frames: requests, replies and events as bytes, and back; docs/protocol.md, "Frames".
//
// Limits (size, depth, count) hold before and while a frame is decoded; a decoded one is checked
// whole (unique string keys, UTF-8, no binary, no trailing bytes). Threads: plain values. Failure:
// invalid_argument that names the field; nothing here throws.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <variant>

#include "shm/error.h"
#include "wire/messages.h"

namespace modelbroker::wire {

inline constexpr std::size_t kMessageLimit = std::size_t{1} << 20;
inline constexpr std::size_t kPacketLimit = std::size_t{64} << 10;
inline constexpr std::size_t kPacketDescriptors = 4;
inline constexpr unsigned kProtocol = 2;

// A request's id as it came: version 1 peers send strings, integers or nothing.
using RequestId = std::variant<std::monostate, std::string, std::uint64_t, std::int64_t>;

// What a reply needs to know of its request.
struct ReplyTo {
  unsigned version = kProtocol;
  RequestId id = std::string();
};

// A request as it came in. Movable; owns what it decoded.
class Request {
 public:
  // `to`, if given, gets what could be told of the sender's version and id, also when decoding fails.
  [[nodiscard]] static Result<Request> decode(std::string_view bytes, std::size_t limit = kMessageLimit,
                                              ReplyTo* to = nullptr);
  Request(Request&&) noexcept;
  Request& operator=(Request&&) noexcept;
  ~Request();

  [[nodiscard]] const ReplyTo& reply_to() const noexcept { return reply_to_; }
  [[nodiscard]] const std::string& type() const noexcept { return type_; }
  [[nodiscard]] const std::string& session() const noexcept { return session_; }  // token or ""
  [[nodiscard]] std::uint64_t deadline_ms() const noexcept { return deadline_ms_; }
  // The data as one of the request structs.
  template <class M>
  [[nodiscard]] Result<M> data() const;

 private:
  struct Decoded;
  Request();
  std::unique_ptr<Decoded> decoded_;
  ReplyTo reply_to_;
  std::string type_, session_;
  std::uint64_t deadline_ms_ = 0;
};

// A reply as it came in.
class Reply {
 public:
  [[nodiscard]] static Result<Reply> decode(std::string_view bytes, std::size_t limit = 64 * kMessageLimit);
  Reply(Reply&&) noexcept;
  Reply& operator=(Reply&&) noexcept;
  ~Reply();

  [[nodiscard]] const std::string& request_id() const noexcept { return request_id_; }
  // The data as one of the reply structs, or the error that the broker answered.
  template <class M>
  [[nodiscard]] Result<M> data() const;

 private:
  struct Decoded;
  Reply();
  std::unique_ptr<Decoded> decoded_;
  std::string request_id_;
};

struct RequestHead {
  std::string_view request_id, type, session{};
  std::uint64_t deadline_ms = 0;
};

template <class M>
[[nodiscard]] std::string encode_request(const RequestHead& head, const M& data);
template <class M>
[[nodiscard]] std::string encode_reply(const ReplyTo& to, const M& data);
[[nodiscard]] std::string encode_reply(const ReplyTo& to, const AnyReply& reply);
[[nodiscard]] std::string encode_error(const ReplyTo& to, const Error& error);

// The second frame of an event; the first is its type.
[[nodiscard]] std::string encode_event(const Event& event);
[[nodiscard]] Result<Event> decode_event(std::string_view bytes);

}  // namespace modelbroker::wire
