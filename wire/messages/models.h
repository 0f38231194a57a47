// Models: loaded, unloaded, listed, pinned, cancelled.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "wire/messages/need.h"

namespace modelbroker::wire {

// A file that was handed in by file.offer, as one of several.
struct OfferedFile {
  std::string file, name;
  template <class Self, class F>
  static void fields(Self& self, F&& f) {
    f("file", self.file, Need::kRequired);
    f("name", self.name, Need::kRequired);
  }
};

// A block of a model.
struct ModelBlock {
  std::string block, path, source;
  std::uint64_t generation = 0, bytes = 0, payload_bytes = 0;
  std::string page_kind;
  friend bool operator==(const ModelBlock&, const ModelBlock&) = default;
  template <class Self, class F>
  static void fields(Self& self, F&& f) {
    f("block", self.block);
    f("path", self.path);
    f("source", self.source);
    f("generation", self.generation);
    f("bytes", self.bytes);
    f("payload_bytes", self.payload_bytes);
    f("page_kind", self.page_kind);
  }
};

struct LoadModel {
  std::string path, file;
  std::vector<OfferedFile> files;
  std::string name, type;
  double estimated_size_mb = 0;
  bool pin = false;
  std::optional<double> keep_alive;
  bool retry = false;
  template <class Self, class F>
  static void fields(Self& self, F&& f) {
    f("path", self.path);
    f("file", self.file);
    f("files", self.files);
    f("name", self.name);
    f("type", self.type);
    f("estimated_size_mb", self.estimated_size_mb);
    f("pin", self.pin);
    f("keep_alive", self.keep_alive);
    f("retry", self.retry);
  }
};

struct LoadModelReply {
  std::string model, block;
  std::uint64_t generation = 0, bytes = 0, payload_bytes = 0;
  std::string page_kind, outcome;
  double seconds = 0;
  std::vector<ModelBlock> blocks;
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
    f("blocks", self.blocks);
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
  std::vector<ModelBlock> blocks;
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
    f("blocks", self.blocks);
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
struct ModelList {
  bool all = false;  // remembered ones too
  template <class Self, class F>
  static void fields(Self& self, F&& f) {
    f("all", self.all);
  }
};

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

}  // namespace modelbroker::wire
