// A frame: refused as invalid_argument, or a request or reply whose data is each struct or a typed refusal.
// Input: the frame.
#include "tests/support/fuzz.h"
#include "wire/frame.h"

namespace modelbroker::wire {
namespace {

using testing::require;

// What was understood can be said again.
template <class M>
void read_request(const Request& request) {
  const auto data = request.data<M>();
  if (!data) return testing::require_presentable(data.error());
  require(Request::decode(encode_request({.request_id = "id", .type = "type"}, *data)).has_value(),
          "a request can be said again");
}

template <class M>
void read_reply(const Reply& reply) {
  const auto data = reply.data<M>();
  if (data) require(Reply::decode(encode_reply(ReplyTo{}, *data)).has_value(), "a reply can be said again");
}

void honest_request_is_read() {
  Attach attach;
  attach.model = "m";
  const auto request = Request::decode(encode_request({"id", "model.attach", "session", 5}, attach));
  require(request.has_value() && request->type() == "model.attach" && request->data<Attach>()->model == "m",
          "an honest request is read");
}

}  // namespace
}  // namespace modelbroker::wire

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace modelbroker;
  using namespace modelbroker::wire;
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  ReplyTo to;
  const auto request = Request::decode(bytes, kMessageLimit, &to);
  if (request) {
#define MODELBROKER_READ(M) read_request<M>(*request);
    MODELBROKER_REQUEST_STRUCTS(MODELBROKER_READ)
#undef MODELBROKER_READ
  } else {
    testing::require(request.error().code == ErrorCode::kInvalidArgument, "a bad request is invalid_argument");
    testing::require_presentable(request.error());
  }
  // Whatever was told of the sender, it can be answered.
  testing::require(Reply::decode(encode_error(to, {ErrorCode::kInternal, "text"})).has_value() || to.version < 2,
                   "an answer can be read");
  if (const auto reply = Reply::decode(bytes)) {
#define MODELBROKER_READ(M) read_reply<M>(*reply);
    MODELBROKER_REPLY_STRUCTS(MODELBROKER_READ)
#undef MODELBROKER_READ
  }
  honest_request_is_read();
  return 0;
}
