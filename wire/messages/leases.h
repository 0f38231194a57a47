// Leases: granted by model.attach, ended by model.detach, stated again after a restart.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "wire/messages/models.h"
#include "wire/messages/need.h"

namespace modelbroker::wire {

struct Attach {
  std::string model, file;
  std::vector<OfferedFile> files;
  bool load = true;
  std::uint64_t lease = 0;
  std::string component, device = "cpu";
  template <class Self, class F>
  static void fields(Self& self, F&& f) {
    f("model", self.model, Need::kRequired);
    f("file", self.file);
    f("files", self.files);
    f("load", self.load);
    f("lease", self.lease);
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
  std::string outcome;  // the load reply's
  std::vector<BlockGrant> blocks;
  template <class Self, class F>
  static void fields(Self& self, F&& f) {
    f("lease", self.lease);
    f("model", self.model);
    f("outcome", self.outcome);
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

}  // namespace modelbroker::wire
