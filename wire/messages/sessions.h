// Sessions, and descriptors in both directions: session.*, file.offer, block.open.
#pragma once

#include <cstdint>
#include <string>

#include "wire/messages/need.h"

namespace modelbroker::wire {

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

}  // namespace modelbroker::wire
