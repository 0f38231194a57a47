// The tiers as a whole: cache.status and cache.scrub.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "wire/messages/need.h"

namespace modelbroker::wire {

struct TierStatus {
  std::uint64_t limit = 0, reserved = 0, made = 0, draining = 0, pinned = 0, leased = 0;  // bytes
  std::uint64_t models = 0, leases = 0, hits = 0, misses = 0, loads = 0, evictions = 0;   // counts
  std::uint64_t scrubbed_bytes = 0, scrub_errors = 0;
  std::uint64_t foreign = 0, foreign_blocks = 0;  // bytes and count
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
    f("foreign", self.foreign);
    f("foreign_blocks", self.foreign_blocks);
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

}  // namespace modelbroker::wire
