// Every message that crosses a process, as plain structs; docs/protocol.md is their text.
//
// A struct names its fields once, in fields(): the codec, the checks and the document's test all read
// that. No logic, no msgpack here. kRequired marks what a request must carry. Threads: plain values.
#pragma once

#include <variant>

#include "wire/messages/cache.h"
#include "wire/messages/events.h"
#include "wire/messages/leases.h"
#include "wire/messages/models.h"
#include "wire/messages/need.h"
#include "wire/messages/sessions.h"

namespace modelbroker::wire {

// Every exchange: X(type on the wire, request struct, reply struct).
#define MODELBROKER_EXCHANGES(X)                             \
  X("session.hello", Empty, SessionHelloReply)               \
  X("session.ping", Empty, SessionPingReply)                 \
  X("session.bye", Empty, SessionByeReply)                   \
  X("model.load_model", LoadModel, LoadModelReply)           \
  X("model.unload_model", UnloadModel, UnloadModelReply)     \
  X("model.list", ModelList, ModelListReply)                 \
  X("model.get", ModelName, ModelGetReply)                   \
  X("model.attach", Attach, AttachReply)                     \
  X("model.detach", Detach, DetachReply)                     \
  X("model.pin", ModelName, PinReply)                        \
  X("model.unpin", ModelName, PinReply)                      \
  X("model.cancel", ModelName, CancelReply)                  \
  X("model.get_model_info", GetModelInfo, GetModelInfoReply) \
  X("lease.restate", Restate, RestateReply)                  \
  X("cache.status", Empty, StatusReply)                      \
  X("cache.scrub", Scrub, ScrubReply)                        \
  X("events.snapshot", Empty, EventsSnapshotReply)           \
  X("session.open", Empty, SessionOpenReply)                 \
  X("file.offer", Empty, FileOfferReply)                     \
  X("block.open", BlockOpen, BlockOpenReply)

// The structs above, each once. (clang-format never settles on these.)
// clang-format off
#define MODELBROKER_REQUEST_STRUCTS(X) \
  X(Empty) X(LoadModel) X(UnloadModel) X(ModelList) X(ModelName) X(Attach) X(Detach) X(GetModelInfo) X(Restate) X(Scrub) \
  X(BlockOpen)
#define MODELBROKER_REPLY_STRUCTS(X)                                                                \
  X(SessionHelloReply) X(SessionPingReply) X(SessionByeReply) X(LoadModelReply) X(UnloadModelReply) \
  X(ModelListReply) X(ModelGetReply) X(AttachReply) X(DetachReply) X(PinReply) X(CancelReply) X(GetModelInfoReply) \
  X(RestateReply) X(StatusReply) X(ScrubReply) X(EventsSnapshotReply) X(SessionOpenReply) X(FileOfferReply)         \
  X(BlockOpenReply)
// Whatever a request is answered by.
#define MODELBROKER_OR(M) , M
using AnyReply = std::variant<std::monostate MODELBROKER_REPLY_STRUCTS(MODELBROKER_OR)>;
#undef MODELBROKER_OR
// clang-format on

}  // namespace modelbroker::wire
