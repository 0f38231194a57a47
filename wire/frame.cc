#include "wire/frame.h"

#include <concepts>
#include <msgpack.hpp>

#include "wire/pack.h"
#include "wire/unpack.h"

namespace modelbroker::wire {
namespace {

constexpr std::size_t kMostElements = 65536;
constexpr std::size_t kMostElementsOfReply = std::size_t{1} << 22;

RequestId id_of(const Object& object) {
  switch (object.type) {
    case msgpack::type::STR:
      return std::string(text_of(object));
    case msgpack::type::POSITIVE_INTEGER:
      return object.via.u64;
    case msgpack::type::NEGATIVE_INTEGER:
      return object.via.i64;
    default:
      return std::monostate{};
  }
}

void pack_id(Packer& packer, const RequestId& id) {
  std::visit(
      [&](const auto& value) {
        if constexpr (std::same_as<std::remove_cvref_t<decltype(value)>, std::monostate>) {
          packer.pack_nil();
        } else {
          packer.pack(value);
        }
      },
      id);
}

void pack_reply_head(Packer& packer, const ReplyTo& to, bool success) {
  packer.pack_map(to.version >= 2 ? 4 : 3);
  if (to.version >= 2) {
    packer.pack("v");
    packer.pack(to.version);
  }
  packer.pack("request_id");
  pack_id(packer, to.id);
  packer.pack("success");
  packer.pack(success);
}

const Object kNoData = [] {
  Object object;
  object.type = msgpack::type::MAP;
  object.via.map.size = 0;
  object.via.map.ptr = nullptr;
  return object;
}();

}  // namespace

struct Request::Decoded {
  msgpack::object_handle handle;
  const Object* data = &kNoData;
};
struct Reply::Decoded {
  msgpack::object_handle handle;
  const Object* data = &kNoData;
  bool success = false;
  Error error;
};

Request::Request() = default;
Request::Request(Request&&) noexcept = default;
Request& Request::operator=(Request&&) noexcept = default;
Request::~Request() = default;
Reply::Reply() = default;
Reply::Reply(Reply&&) noexcept = default;
Reply& Reply::operator=(Reply&&) noexcept = default;
Reply::~Reply() = default;

Result<Request> Request::decode(std::string_view bytes, std::size_t limit, ReplyTo* to) {
  MODELBROKER_ASSIGN(auto handle, unpack_frame(bytes, limit, kMostElements));
  Request request;
  request.reply_to_.id = std::monostate{};
  const Object& map = handle.get();
  if (const Object* id = find(map, "request_id"); id != nullptr) request.reply_to_.id = id_of(*id);
  if (to != nullptr) *to = {find(map, "v") == nullptr ? 1 : kProtocol, request.reply_to_.id};
  const Object* version = find(map, "v");
  request.reply_to_.version = 1;
  if (version != nullptr) {
    if (version->type != msgpack::type::POSITIVE_INTEGER || version->via.u64 != kProtocol) {
      return fail(ErrorCode::kInvalidArgument, "'v' must be 2, or absent for version 1: this broker speaks no other");
    }
    request.reply_to_.version = kProtocol;
  }
  if (request.reply_to_.version >= 2) {
    const auto* text = std::get_if<std::string>(&request.reply_to_.id);
    if (text == nullptr || text->empty() || text->size() > 64) {
      return fail(ErrorCode::kInvalidArgument, "'request_id' must be a string of 1 to 64 bytes");
    }
  }
  const Object* type = find(map, "type");
  if (type == nullptr || !unpack(*type, request.type_) || request.type_.empty()) {
    return fail(ErrorCode::kInvalidArgument, "'type' must be a string such as \"model.list\"");
  }
  if (const Object* session = find(map, "session");
      session != nullptr && session->type != msgpack::type::NIL && !unpack(*session, request.session_)) {
    return fail(ErrorCode::kInvalidArgument, "'session' must be the token of session.open");
  }
  if (const Object* deadline = find(map, "deadline_ms");
      deadline != nullptr && deadline->type != msgpack::type::NIL && !unpack(*deadline, request.deadline_ms_)) {
    return fail(ErrorCode::kInvalidArgument, "'deadline_ms' must be an unsigned integer");
  }
  request.decoded_ = std::make_unique<Decoded>();
  if (const Object* data = find(map, "data"); data != nullptr && data->type != msgpack::type::NIL) {
    request.decoded_->data = data;
  }
  request.decoded_->handle = std::move(handle);
  return request;
}

template <class M>
Result<M> Request::data() const {
  M message;
  MODELBROKER_TRY(unpack_fields(*decoded_->data, message));
  return message;
}

Result<Reply> Reply::decode(std::string_view bytes, std::size_t limit) {
  MODELBROKER_ASSIGN(auto handle, unpack_frame(bytes, limit, kMostElementsOfReply));
  Reply reply;
  reply.decoded_ = std::make_unique<Decoded>();
  const Object& map = handle.get();
  const Object* id = find(map, "request_id");
  if (id != nullptr) unpack(*id, reply.request_id_);
  const Object* success = find(map, "success");
  if (success == nullptr || !unpack(*success, reply.decoded_->success)) {
    return fail(ErrorCode::kInternal, "the broker's reply has no 'success'");
  }
  if (const Object* data = find(map, "data"); data != nullptr) reply.decoded_->data = data;
  if (const Object* error = find(map, "error"); error != nullptr && error->type == msgpack::type::MAP) {
    std::string code;
    if (const Object* found = find(*error, "code")) unpack(*found, code);
    reply.decoded_->error.code = error_code_from(code);
    if (const Object* found = find(*error, "message")) unpack(*found, reply.decoded_->error.message);
    if (const Object* found = find(*error, "details")) unpack(*found, reply.decoded_->error.details);
  }
  reply.decoded_->handle = std::move(handle);
  return reply;
}

template <class M>
Result<M> Reply::data() const {
  if (!decoded_->success) return tl::unexpected<Error>(decoded_->error);
  M message;
  MODELBROKER_TRY(unpack_fields(*decoded_->data, message));
  return message;
}

template <class M>
std::string encode_request(const RequestHead& head, const M& data) {
  Bytes buffer;
  Packer packer(buffer);
  packer.pack_map(4U + (head.session.empty() ? 0U : 1U) + (head.deadline_ms == 0 ? 0U : 1U));
  packer.pack("v");
  packer.pack(kProtocol);
  packer.pack("request_id");
  packer.pack(head.request_id);
  packer.pack("type");
  packer.pack(head.type);
  if (!head.session.empty()) {
    packer.pack("session");
    packer.pack(head.session);
  }
  if (head.deadline_ms != 0) {
    packer.pack("deadline_ms");
    packer.pack(head.deadline_ms);
  }
  packer.pack("data");
  pack(packer, data);
  return std::move(buffer.text);
}

template <class M>
std::string encode_reply(const ReplyTo& to, const M& data) {
  Bytes buffer;
  Packer packer(buffer);
  pack_reply_head(packer, to, true);
  packer.pack("data");
  pack(packer, data);
  return std::move(buffer.text);
}

std::string encode_reply(const ReplyTo& to, const AnyReply& reply) {
  return std::visit(
      [&]<class M>(const M& data) {
        if constexpr (std::same_as<M, std::monostate>) {
          return encode_error(to, {ErrorCode::kInternal, "the request got an empty answer: please report it"});
        } else {
          return encode_reply(to, data);
        }
      },
      reply);
}

std::string encode_error(const ReplyTo& to, const Error& error) {
  Bytes buffer;
  Packer packer(buffer);
  pack_reply_head(packer, to, false);
  packer.pack("error");
  if (to.version < 2) {
    packer.pack(std::string(to_string(error.code)) + ": " + error.message);
  } else {
    packer.pack_map(3);
    packer.pack("code");
    packer.pack(to_string(error.code));
    packer.pack("message");
    packer.pack(error.message);
    packer.pack("details");
    packer.pack(error.details);
  }
  return std::move(buffer.text);
}

std::string encode_event(const Event& event) {
  Bytes buffer;
  Packer packer(buffer);
  std::uint32_t count = 1;
  Event::fields(event, [&](const char*, const auto&, Need) { ++count; });
  packer.pack_map(count);
  packer.pack("v");
  packer.pack(kProtocol);
  const auto is_set = []<class T>(const T& value) { return value != T(); };
  Event::fields(event, [&]<class T>(const char* name, const T& value, Need) {
    packer.pack(name);
    if constexpr (!std::same_as<T, EventData>) {
      pack(packer, value);
    } else {
      std::uint32_t fields = 0;
      EventData::fields(value, [&](const char*, const auto& field) { fields += is_set(field) ? 1 : 0; });
      packer.pack_map(fields);
      EventData::fields(value, [&](const char* key, const auto& field) {
        if (!is_set(field)) return;
        packer.pack(key);
        pack(packer, field);
      });
    }
  });
  return std::move(buffer.text);
}

Result<Event> decode_event(std::string_view bytes) {
  MODELBROKER_ASSIGN(const auto handle, unpack_frame(bytes, kMessageLimit, kMostElements));
  const Object* const version = find(handle.get(), "v");
  std::uint64_t number = 0;
  if (version == nullptr || !unpack(*version, number) || number != kProtocol) {
    return fail(ErrorCode::kInvalidArgument, "an event's 'v' must be 2");
  }
  Event event;
  MODELBROKER_TRY(unpack_fields(handle.get(), event));
  return event;
}

// The templates live here only, so that msgpack stays in this room.
#define MODELBROKER_REQUEST(M)                 \
  template Result<M> Request::data<M>() const; \
  template std::string encode_request<M>(const RequestHead&, const M&);
MODELBROKER_REQUEST_STRUCTS(MODELBROKER_REQUEST)
#define MODELBROKER_REPLY(M)                 \
  template Result<M> Reply::data<M>() const; \
  template std::string encode_reply<M>(const ReplyTo&, const M&);
MODELBROKER_REPLY_STRUCTS(MODELBROKER_REPLY)

}  // namespace modelbroker::wire
