#include "wire/frame.h"

#include <concepts>
#include <limits>
#include <msgpack.hpp>
#include <set>
#include <vector>

namespace modelbroker::wire {
namespace {

constexpr std::size_t kMostDepth = 8;
constexpr std::size_t kMostElements = 65536;

using Object = msgpack::object;
using Packer = msgpack::packer<msgpack::sbuffer>;

// ---- values to bytes

template <class T>
concept Message = requires(T& value) {
  T::fields(value, [](auto&&...) {});
};

void pack(Packer& packer, const std::string& value) { packer.pack(value); }
void pack(Packer& packer, bool value) { packer.pack(value); }
void pack(Packer& packer, std::uint64_t value) { packer.pack(value); }
void pack(Packer& packer, double value) { packer.pack(value); }
void pack(Packer& packer, const std::optional<double>& value) {
  if (value) {
    packer.pack(*value);
  } else {
    packer.pack_nil();
  }
}
template <Message M>
void pack(Packer& packer, const M& message);
template <class T>
void pack(Packer& packer, const std::vector<T>& values);
template <class T>
void pack(Packer& packer, const std::map<std::string, T>& values);

template <Message M>
void pack(Packer& packer, const M& message) {
  std::uint32_t count = 0;
  M::fields(message, [&](const char*, const auto&, Need = Need::kOptional) { ++count; });
  packer.pack_map(count);
  M::fields(message, [&](const char* name, const auto& value, Need = Need::kOptional) {
    packer.pack(name);
    pack(packer, value);
  });
}

template <class T>
void pack(Packer& packer, const std::vector<T>& values) {
  packer.pack_array(static_cast<std::uint32_t>(values.size()));
  for (const T& value : values) pack(packer, value);
}

template <class T>
void pack(Packer& packer, const std::map<std::string, T>& values) {
  packer.pack_map(static_cast<std::uint32_t>(values.size()));
  for (const auto& [key, value] : values) {
    packer.pack(key);
    pack(packer, value);
  }
}

// ---- bytes to values

std::string_view text_of(const Object& object) { return {object.via.str.ptr, object.via.str.size}; }

const Object* find(const Object& map, std::string_view key) {
  for (std::uint32_t i = 0; i < map.via.map.size; ++i) {
    const auto& pair = map.via.map.ptr[i];
    if (pair.key.type == msgpack::type::STR && text_of(pair.key) == key) return &pair.val;
  }
  return nullptr;
}

bool unpack(const Object& object, std::string& value) {
  if (object.type != msgpack::type::STR) return false;
  value.assign(object.via.str.ptr, object.via.str.size);
  return true;
}
bool unpack(const Object& object, bool& value) {
  if (object.type != msgpack::type::BOOLEAN) return false;
  value = object.via.boolean;
  return true;
}
bool unpack(const Object& object, std::uint64_t& value) {
  if (object.type != msgpack::type::POSITIVE_INTEGER) return false;
  value = object.via.u64;
  return true;
}
bool unpack(const Object& object, double& value) {
  switch (object.type) {
    case msgpack::type::FLOAT32:
    case msgpack::type::FLOAT64:
      value = object.via.f64;
      return true;
    case msgpack::type::POSITIVE_INTEGER:
      value = static_cast<double>(object.via.u64);
      return true;
    case msgpack::type::NEGATIVE_INTEGER:
      value = static_cast<double>(object.via.i64);
      return true;
    default:
      return false;
  }
}
bool unpack(const Object& object, std::optional<double>& value) { return unpack(object, value.emplace()); }
template <Message M>
bool unpack(const Object& object, M& message);
template <class T>
bool unpack(const Object& object, std::map<std::string, T>& values);

template <class T>
bool unpack(const Object& object, std::vector<T>& values) {
  if (object.type != msgpack::type::ARRAY) return false;
  values.clear();
  values.reserve(object.via.array.size);
  for (std::uint32_t i = 0; i < object.via.array.size; ++i) {
    if (!unpack(object.via.array.ptr[i], values.emplace_back())) return false;
  }
  return true;
}

template <class T>
bool unpack(const Object& object, std::map<std::string, T>& values) {
  if (object.type != msgpack::type::MAP) return false;
  values.clear();
  for (std::uint32_t i = 0; i < object.via.map.size; ++i) {
    const auto& pair = object.via.map.ptr[i];
    if (!unpack(pair.val, values[std::string(text_of(pair.key))])) return false;
  }
  return true;
}

template <class T>
constexpr std::string_view kind_of() {
  if constexpr (std::same_as<T, std::string>) return "a string";
  if constexpr (std::same_as<T, bool>) return "a bool";
  if constexpr (std::same_as<T, std::uint64_t>) return "an unsigned integer";
  if constexpr (std::same_as<T, double> || std::same_as<T, std::optional<double>>) return "a number";
  if constexpr (Message<T>) return "a map";
  return "an array or map of the documented kind";
}

template <Message M>
Result<void> unpack_fields(const Object& object, M& message) {
  if (object.type != msgpack::type::MAP) {
    return fail(ErrorCode::kInvalidArgument, "'data' must be a map; docs/protocol.md has its fields");
  }
  Result<void> outcome;
  M::fields(message, [&](const char* name, auto& value, Need need = Need::kOptional) {
    if (!outcome) return;
    const Object* found = find(object, name);
    if (found == nullptr || found->type == msgpack::type::NIL) {
      if (need == Need::kRequired) {
        outcome = fail(ErrorCode::kInvalidArgument, std::string("field '") + name + "' is missing");
      }
      return;
    }
    if (!unpack(*found, value)) {
      outcome = fail(ErrorCode::kInvalidArgument, std::string("field '") + name + "' must be " +
                                                      std::string(kind_of<std::remove_cvref_t<decltype(value)>>()));
    }
  });
  return outcome;
}

template <Message M>
bool unpack(const Object& object, M& message) {
  return object.type == msgpack::type::MAP && unpack_fields(object, message).has_value();
}

// ---- a whole frame, checked before anybody looks inside

Result<void> check_tree(const Object& object) {
  const auto refuse = [](const char* why) { return fail(ErrorCode::kInvalidArgument, why); };
  switch (object.type) {
    case msgpack::type::BIN:
    case msgpack::type::EXT:
      return refuse("binary and extension values are not part of the protocol");
    case msgpack::type::STR:
      return valid_utf8(text_of(object)) ? Result<void>() : refuse("a string is not UTF-8");
    case msgpack::type::ARRAY:
      for (std::uint32_t i = 0; i < object.via.array.size; ++i) {
        MODELBROKER_TRY(check_tree(object.via.array.ptr[i]));
      }
      return {};
    case msgpack::type::MAP: {
      std::set<std::string_view> keys;
      for (std::uint32_t i = 0; i < object.via.map.size; ++i) {
        const auto& pair = object.via.map.ptr[i];
        if (pair.key.type != msgpack::type::STR) return refuse("a map's key is not a string");
        MODELBROKER_TRY(check_tree(pair.key));
        if (!keys.insert(text_of(pair.key)).second) {
          return fail(ErrorCode::kInvalidArgument, "key '" + printable(text_of(pair.key), 64) + "' is there twice");
        }
        MODELBROKER_TRY(check_tree(pair.val));
      }
      return {};
    }
    default:
      return {};
  }
}

// Counts array items and map entries before anything is built, so that a bomb is refused unbuilt: msgpack's
// own limits hold for one container at a time.
struct ElementCounter : msgpack::null_visitor {
  explicit ElementCounter(std::size_t limit) : most(limit) {}
  bool start_array(std::uint32_t count) { return add(count); }
  bool start_map(std::uint32_t count) { return add(count); }
  bool add(std::uint32_t count) {
    elements += count;
    return elements <= most;
  }
  std::size_t most;
  std::size_t elements = 0;
};

Result<msgpack::object_handle> unpack_frame(std::string_view bytes, std::size_t limit, std::size_t most_elements) {
  if (bytes.size() > limit) {
    return fail(ErrorCode::kInvalidArgument, "the message is longer than " + std::to_string(limit) + " bytes");
  }
  try {
    // msgpack checks each length against its limit, not against the bytes that are there; the
    // allocation for a count is 16 to 32 bytes an element, so the count is the bound.
    const msgpack::unpack_limit limits(most_elements, most_elements, limit, 0, 0, kMostDepth);
    std::size_t consumed = 0;
    ElementCounter counter(most_elements);
    // Bytes that are no msgpack end the walk too: unpack() says why.
    (void)msgpack::parse(bytes.data(), bytes.size(), consumed, counter);
    if (counter.elements > most_elements) {
      return fail(ErrorCode::kInvalidArgument,
                  "the message has more than " + std::to_string(most_elements) + " elements");
    }
    consumed = 0;
    msgpack::object_handle handle = msgpack::unpack(bytes.data(), bytes.size(), consumed, nullptr, nullptr, limits);
    if (consumed != bytes.size()) {
      return fail(ErrorCode::kInvalidArgument, "there are bytes after the message's end");
    }
    if (handle->type != msgpack::type::MAP) {
      return fail(ErrorCode::kInvalidArgument, "the message is not a msgpack map");
    }
    MODELBROKER_TRY(check_tree(handle.get()));
    return handle;
  } catch (const std::exception& error) {
    return fail(ErrorCode::kInvalidArgument,
                std::string("the message is not msgpack within the protocol's limits (") + error.what() + ")");
  }
}

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
  MODELBROKER_ASSIGN(auto handle, unpack_frame(bytes, limit, std::size_t{1} << 22));
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
  msgpack::sbuffer buffer;
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
  return {buffer.data(), buffer.size()};
}

template <class M>
std::string encode_reply(const ReplyTo& to, const M& data) {
  msgpack::sbuffer buffer;
  Packer packer(buffer);
  pack_reply_head(packer, to, true);
  packer.pack("data");
  pack(packer, data);
  return {buffer.data(), buffer.size()};
}

std::string encode_error(const ReplyTo& to, const Error& error) {
  msgpack::sbuffer buffer;
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
  return {buffer.data(), buffer.size()};
}

std::string encode_event(const Event& event) {
  msgpack::sbuffer buffer;
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
  return {buffer.data(), buffer.size()};
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

// The templates live here only, so that msgpack is included here only.
#define MODELBROKER_REQUEST(M)                 \
  template Result<M> Request::data<M>() const; \
  template std::string encode_request<M>(const RequestHead&, const M&);
MODELBROKER_REQUEST_STRUCTS(MODELBROKER_REQUEST)
#define MODELBROKER_REPLY(M)                 \
  template Result<M> Reply::data<M>() const; \
  template std::string encode_reply<M>(const ReplyTo&, const M&);
MODELBROKER_REPLY_STRUCTS(MODELBROKER_REPLY)

}  // namespace modelbroker::wire
