// What is published on the PUB socket, and the snapshot of what it tells of.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "wire/messages/cache.h"
#include "wire/messages/models.h"
#include "wire/messages/need.h"

namespace modelbroker::wire {

// What happened to what. Fields that are empty or 0 are left out of the map.
struct EventData {
  std::string model, block, path;
  std::uint64_t bytes = 0, total_bytes = 0, read_bytes = 0;
  std::string reason;
  std::uint64_t uid = 0, pid = 0, generation = 0, count = 0;
  std::string outcome;
  std::uint64_t chunk = 0, offset = 0;
  std::vector<ModelBlock> blocks;
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
    f("blocks", self.blocks);
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

}  // namespace modelbroker::wire
