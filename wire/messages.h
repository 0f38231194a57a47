// Every message that crosses a process, as plain structs; docs/protocol.md is the text of this file.
//
// A struct names its fields once, in fields(): the codec, the checks and the document's test all read
// that. No logic, no msgpack here. kRequired marks what a request must carry. Threads: plain values.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace modelbroker::wire {

enum class Need : std::uint8_t { kOptional, kRequired };

struct Empty {
  template <class Self, class F>
  static void fields(Self&, F&&) {}
};

// ---- sessions

struct SessionHelloReply {
  std::string version, boot_id, instance, fds, events, ram_directory;
  std::uint64_t uid = 0, pid = 0;
  template <class Self, class F>
  static void fields(Self& self, F&& f) {
    f("version", self.version);
    f("boot_id", self.boot_id);
    f("instance", self.instance);
    f("fds", self.fds);
    f("events", self.events);
    f("ram_directory", self.ram_directory);
    f("uid", self.uid);
    f("pid", self.pid);
  }
};

struct SessionPingReply {
  std::string boot_id;
  std::uint64_t seq = 0;
  template <class Self, class F>
  static void fields(Self& self, F&& f) {
    f("boot_id", self.boot_id);
    f("seq", self.seq);
  }
};

struct SessionByeReply {
  std::uint64_t released = 0;
  template <class Self, class F>
  static void fields(Self& self, F&& f) {
    f("released", self.released);
  }
};

// ---- models

struct LoadModel {
  std::string path, file, name, type;
  double estimated_size_mb = 0;
  bool pin = false;
  std::optional<double> keep_alive;
  template <class Self, class F>
  static void fields(Self& self, F&& f) {
    f("path", self.path);
    f("file", self.file);
    f("name", self.name);
    f("type", self.type);
    f("estimated_size_mb", self.estimated_size_mb);
    f("pin", self.pin);
    f("keep_alive", self.keep_alive);
  }
};

struct LoadModelReply {
  std::string model, block;
  std::uint64_t generation = 0, bytes = 0, payload_bytes = 0;
  std::string page_kind, outcome;
  double seconds = 0;
  template <class Self, class F>
  static void fields(Self& self, F&& f) {
    f("model", self.model);
    f("block", self.block);
    f("generation", self.generation);
    f("bytes", self.bytes);
    f("payload_bytes", self.payload_bytes);
    f("page_kind", self.page_kind);
    f("outcome", self.outcome);
    f("seconds", self.seconds);
  }
};

struct UnloadModel {
  std::string model, name;
  bool wait = false;
  template <class Self, class F>
  static void fields(Self& self, F&& f) {
    f("model", self.model);
    f("name", self.name);
    f("wait", self.wait);
  }
};

struct UnloadModelReply {
  std::string model;
  std::uint64_t freed = 0, draining = 0;
  std::vector<std::string> remaining_names;
  template <class Self, class F>
  static void fields(Self& self, F&& f) {
    f("model", self.model);
    f("freed", self.freed);
    f("draining", self.draining);
    f("remaining_names", self.remaining_names);
  }
};

struct LeaseHolder {
  std::uint64_t pid = 0, uid = 0, lease = 0, since_ms = 0;
  template <class Self, class F>
  static void fields(Self& self, F&& f) {
    f("pid", self.pid);
    f("uid", self.uid);
    f("lease", self.lease);
    f("since_ms", self.since_ms);
  }
};

struct ModelInfo {
  std::string name;
  std::vector<std::string> aliases;
  std::string type, format, path, state, block, block_path;
  std::uint64_t generation = 0, bytes = 0, payload_bytes = 0, loaded_bytes = 0, tensors = 0;
  std::string page_kind;
  bool pinned = false;
  double keep_alive = -1;
  std::optional<double> expires_at;
  std::vector<LeaseHolder> leases;
  template <class Self, class F>
  static void fields(Self& self, F&& f) {
    f("name", self.name);
    f("aliases", self.aliases);
    f("type", self.type);
    f("format", self.format);
    f("path", self.path);
    f("state", self.state);
    f("block", self.block);
    f("block_path", self.block_path);
    f("generation", self.generation);
    f("bytes", self.bytes);
    f("payload_bytes", self.payload_bytes);
    f("loaded_bytes", self.loaded_bytes);
    f("tensors", self.tensors);
    f("page_kind", self.page_kind);
    f("pinned", self.pinned);
    f("keep_alive", self.keep_alive);
    f("expires_at", self.expires_at);
    f("leases", self.leases);
  }
};

struct ModelListReply {
  std::vector<ModelInfo> models, draining;
  template <class Self, class F>
  static void fields(Self& self, F&& f) {
    f("models", self.models);
    f("draining", self.draining);
  }
};

// The request of model.get, model.pin, model.unpin and model.cancel.
struct ModelName {
  std::string model;
  template <class Self, class F>
  static void fields(Self& self, F&& f) {
    f("model", self.model, Need::kRequired);
  }
};

struct ModelGetReply {
  ModelInfo model;
  template <class Self, class F>
  static void fields(Self& self, F&& f) {
    f("model", self.model);
  }
};

struct Attach {
  std::string model, file;
  bool load = true;
  std::string component, device = "cpu";
  template <class Self, class F>
  static void fields(Self& self, F&& f) {
    f("model", self.model, Need::kRequired);
    f("file", self.file);
    f("load", self.load);
    f("component", self.component);
    f("device", self.device);
  }
};

struct BlockGrant {
  std::string block, path;
  std::uint64_t generation = 0, size = 0, payload_offset = 0, payload_size = 0, manifest_offset = 0, manifest_size = 0;
  std::string page_kind;
  template <class Self, class F>
  static void fields(Self& self, F&& f) {
    f("block", self.block);
    f("path", self.path);
    f("generation", self.generation);
    f("size", self.size);
    f("payload_offset", self.payload_offset);
    f("payload_size", self.payload_size);
    f("manifest_offset", self.manifest_offset);
    f("manifest_size", self.manifest_size);
    f("page_kind", self.page_kind);
  }
};

struct AttachReply {
  std::uint64_t lease = 0;
  std::string model;
  std::vector<BlockGrant> blocks;
  template <class Self, class F>
  static void fields(Self& self, F&& f) {
    f("lease", self.lease);
    f("model", self.model);
    f("blocks", self.blocks);
  }
};

struct Detach {
  std::uint64_t lease = 0;
  template <class Self, class F>
  static void fields(Self& self, F&& f) {
    f("lease", self.lease, Need::kRequired);
  }
};

struct DetachReply {
  bool released = false;
  template <class Self, class F>
  static void fields(Self& self, F&& f) {
    f("released", self.released);
  }
};

struct PinReply {
  std::string model;
  bool pinned = false;
  template <class Self, class F>
  static void fields(Self& self, F&& f) {
    f("model", self.model);
    f("pinned", self.pinned);
  }
};

struct CancelReply {
  std::uint64_t cancelled = 0;
  template <class Self, class F>
  static void fields(Self& self, F&& f) {
    f("cancelled", self.cancelled);
  }
};

struct GetModelInfo {
  std::string name;
  template <class Self, class F>
  static void fields(Self& self, F&& f) {
    f("name", self.name);
  }
};

struct LoadedModel {
  std::string path, type;
  double size_mb = 0;
  std::uint64_t generation = 0;
  template <class Self, class F>
  static void fields(Self& self, F&& f) {
    f("path", self.path);
    f("type", self.type);
    f("size_mb", self.size_mb);
    f("generation", self.generation);
  }
};

struct GetModelInfoReply {
  std::map<std::string, LoadedModel> loaded_models;
  double memory_usage_mb = 0, available_memory_mb = 0;
  std::uint64_t model_count = 0;
  template <class Self, class F>
  static void fields(Self& self, F&& f) {
    f("loaded_models", self.loaded_models);
    f("memory_usage_mb", self.memory_usage_mb);
    f("available_memory_mb", self.available_memory_mb);
    f("model_count", self.model_count);
  }
};

// ---- leases and status

struct HeldLease {
  std::uint64_t lease = 0;
  std::string model;
  std::vector<std::string> blocks;
  template <class Self, class F>
  static void fields(Self& self, F&& f) {
    f("lease", self.lease, Need::kRequired);
    f("model", self.model);
    f("blocks", self.blocks, Need::kRequired);
  }
};

struct Restate {
  std::vector<HeldLease> leases;
  template <class Self, class F>
  static void fields(Self& self, F&& f) {
    f("leases", self.leases, Need::kRequired);
  }
};

struct RestateReply {
  std::vector<std::uint64_t> restated, lost;
  template <class Self, class F>
  static void fields(Self& self, F&& f) {
    f("restated", self.restated);
    f("lost", self.lost);
  }
};

struct TierStatus {
  std::uint64_t limit = 0, reserved = 0, made = 0, draining = 0, pinned = 0, leased = 0;  // bytes
  std::uint64_t models = 0, leases = 0, hits = 0, misses = 0, loads = 0, evictions = 0;   // counts
  std::uint64_t scrubbed_bytes = 0, scrub_errors = 0;
  template <class Self, class F>
  static void fields(Self& self, F&& f) {
    f("limit", self.limit);
    f("reserved", self.reserved);
    f("made", self.made);
    f("draining", self.draining);
    f("pinned", self.pinned);
    f("leased", self.leased);
    f("models", self.models);
    f("leases", self.leases);
    f("hits", self.hits);
    f("misses", self.misses);
    f("loads", self.loads);
    f("evictions", self.evictions);
    f("scrubbed_bytes", self.scrubbed_bytes);
    f("scrub_errors", self.scrub_errors);
  }
};

struct StatusReply {
  std::string boot_id, version, instance;
  std::uint64_t pid = 0, uptime_ms = 0;
  std::string ram_directory, page_kind;
  std::uint64_t sessions = 0;
  std::map<std::string, bool> features;
  std::map<std::string, TierStatus> tiers;
  template <class Self, class F>
  static void fields(Self& self, F&& f) {
    f("boot_id", self.boot_id);
    f("version", self.version);
    f("instance", self.instance);
    f("pid", self.pid);
    f("uptime_ms", self.uptime_ms);
    f("ram_directory", self.ram_directory);
    f("page_kind", self.page_kind);
    f("sessions", self.sessions);
    f("features", self.features);
    f("tiers", self.tiers);
  }
};

struct Scrub {
  std::string model;
  template <class Self, class F>
  static void fields(Self& self, F&& f) {
    f("model", self.model);
  }
};

struct ScrubbedModel {
  std::string model, block;
  std::uint64_t generation = 0, bytes = 0;
  std::string outcome;
  std::uint64_t chunk = 0, offset = 0;
  std::string reason;
  template <class Self, class F>
  static void fields(Self& self, F&& f) {
    f("model", self.model);
    f("block", self.block);
    f("generation", self.generation);
    f("bytes", self.bytes);
    f("outcome", self.outcome);
    f("chunk", self.chunk);
    f("offset", self.offset);
    f("reason", self.reason);
  }
};

struct ScrubReply {
  std::uint64_t bytes = 0, damaged = 0;
  std::vector<ScrubbedModel> models;
  template <class Self, class F>
  static void fields(Self& self, F&& f) {
    f("bytes", self.bytes);
    f("damaged", self.damaged);
    f("models", self.models);
  }
};

// ---- events

// What happened to what. Fields that are empty or 0 are left out of the map.
struct EventData {
  std::string model, block, path;
  std::uint64_t bytes = 0, total_bytes = 0, read_bytes = 0;
  std::string reason;
  std::uint64_t uid = 0, pid = 0, generation = 0, count = 0;
  std::string outcome;
  std::uint64_t chunk = 0, offset = 0;
  template <class Self, class F>
  static void fields(Self& self, F&& f) {
    f("model", self.model);
    f("block", self.block);
    f("path", self.path);
    f("bytes", self.bytes);
    f("total_bytes", self.total_bytes);
    f("read_bytes", self.read_bytes);
    f("reason", self.reason);
    f("uid", self.uid);
    f("pid", self.pid);
    f("generation", self.generation);
    f("count", self.count);
    f("outcome", self.outcome);
    f("chunk", self.chunk);
    f("offset", self.offset);
  }
};

// A message of the PUB socket, without its version.
struct Event {
  std::string boot_id;
  std::uint64_t seq = 0;
  std::string type;
  double time = 0;  // seconds of the Unix clock
  EventData data;
  template <class Self, class F>
  static void fields(Self& self, F&& f) {
    f("boot_id", self.boot_id, Need::kRequired);
    f("seq", self.seq, Need::kRequired);
    f("type", self.type, Need::kRequired);
    f("time", self.time, Need::kRequired);
    f("data", self.data, Need::kRequired);
  }
};

// Every type of event; no other is published.
inline constexpr std::array<std::string_view, 19> kEventTypes{
    "model.loading",  "model.progress", "model.loaded",  "model.load_failed", "model.alias",
    "model.unloaded", "model.draining", "model.freed",   "model.revived",     "model.evicted",
    "model.pinned",   "model.unpinned", "model.damaged", "model.scrubbing",   "lease.granted",
    "lease.released", "session.opened", "session.ended", "broker.stopping"};

struct EventsSnapshotReply {
  std::string boot_id;
  std::uint64_t seq = 0;
  std::vector<ModelInfo> models, draining;
  std::map<std::string, TierStatus> tiers;
  template <class Self, class F>
  static void fields(Self& self, F&& f) {
    f("boot_id", self.boot_id);
    f("seq", self.seq);
    f("models", self.models);
    f("draining", self.draining);
    f("tiers", self.tiers);
  }
};

// ---- fd socket

struct SessionOpenReply {
  std::string session, boot_id;
  template <class Self, class F>
  static void fields(Self& self, F&& f) {
    f("session", self.session);
    f("boot_id", self.boot_id);
  }
};

struct FileOfferReply {
  std::string file;
  template <class Self, class F>
  static void fields(Self& self, F&& f) {
    f("file", self.file);
  }
};

struct BlockOpen {
  std::string block;
  template <class Self, class F>
  static void fields(Self& self, F&& f) {
    f("block", self.block, Need::kRequired);
  }
};

struct BlockOpenReply {
  std::uint64_t size = 0;
  template <class Self, class F>
  static void fields(Self& self, F&& f) {
    f("size", self.size);
  }
};

// Every exchange: X(type on the wire, request struct, reply struct).
#define MODELBROKER_EXCHANGES(X)                             \
  X("session.hello", Empty, SessionHelloReply)               \
  X("session.ping", Empty, SessionPingReply)                 \
  X("session.bye", Empty, SessionByeReply)                   \
  X("model.load_model", LoadModel, LoadModelReply)           \
  X("model.unload_model", UnloadModel, UnloadModelReply)     \
  X("model.list", Empty, ModelListReply)                     \
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
  X(Empty) X(LoadModel) X(UnloadModel) X(ModelName) X(Attach) X(Detach) X(GetModelInfo) X(Restate) X(Scrub) \
  X(BlockOpen)
#define MODELBROKER_REPLY_STRUCTS(X)                                                                \
  X(SessionHelloReply) X(SessionPingReply) X(SessionByeReply) X(LoadModelReply) X(UnloadModelReply) \
  X(ModelListReply) X(ModelGetReply) X(AttachReply) X(DetachReply) X(PinReply) X(CancelReply) X(GetModelInfoReply) \
  X(RestateReply) X(StatusReply) X(ScrubReply) X(EventsSnapshotReply) X(SessionOpenReply) X(FileOfferReply)         \
  X(BlockOpenReply)
// clang-format on

}  // namespace modelbroker::wire
