// Books: all that the broker knows, in one place. Owned by the loop's thread; no locks, no I/O.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "broker/base/clock.h"
#include "broker/base/config.h"
#include "broker/models/registry.h"
#include "broker/ram/ram_blocks.h"
#include "broker/tier/budget.h"
#include "broker/workers/leases.h"
#include "broker/workers/rights.h"
#include "broker/workers/sessions.h"
#include "shm/block.h"

namespace modelbroker {

struct Books {
  Books(Os& os_, const Clock& clock_, Config config_, const Rights& rights_, BlockDirectory directory_)
      : os(os_),
        clock(clock_),
        config(std::move(config_)),
        rights(rights_),
        directory(std::move(directory_)),
        blocks(os_) {}

  Os& os;
  const Clock& clock;
  Config config;  // what may change while we run does so at SIGHUP
  const Rights rights;
  BlockDirectory directory;
  BootId boot_id{};
  TimePoint started;
  RamBlocks blocks;
  Registry models;
  LeaseBook leases;
  Sessions sessions;
  Budget budget{0};
  double cache_age = 0;  // see eviction.h
  std::uint64_t hits = 0, misses = 0, loads = 0, evictions = 0;
  std::uint64_t scrubbed_bytes = 0, scrub_errors = 0;
  std::uint64_t highest_generation = 0;
  // Blocks of this instance that a later version left: not read, not freed.
  struct Foreign {
    std::uint64_t blocks = 0, bytes = 0;
  } foreign;

  // Never the same twice, not even over a restart: CLOCK_BOOTTIME only grows while blocks live.
  [[nodiscard]] std::uint64_t new_generation() {
    return highest_generation = std::max(os.boottime_ns(), highest_generation + 1);
  }
  void used(ModelEntry& model) const { models.used(model, clock.now(), cache_age); }
  [[nodiscard]] bool may_attach(uid_t uid, const RamBlock& block) const {
    return rights.attach(uid, {block.loader, block.source_uid, block.is_private});
  }
  [[nodiscard]] bool may_attach(uid_t uid, const ModelEntry& model) const {
    return std::ranges::all_of(model.parts, [&](const RamBlock* part) { return may_attach(uid, *part); });
  }
  // Whether all, or any, of its names are this user's to withdraw and change.
  [[nodiscard]] bool manages_all(uid_t uid, const ModelEntry& model) const {
    return std::ranges::all_of(model.names,
                               [&](const std::string& name) { return rights.manage(uid, models.loader_of(name)); });
  }
  // The same of those names that were given to the file at `path`.
  [[nodiscard]] bool manages(uid_t uid, const ModelEntry& model, std::string_view path) const {
    return std::ranges::all_of(model.names, [&](const std::string& name) {
      const GivenName& given = models.given(name);
      return given.path != path || rights.manage(uid, given.loader);
    });
  }
  // By our own word; the kernel's is asked before it is done.
  [[nodiscard]] bool evictable(const ModelEntry& model) const {
    return !model.pinned && std::ranges::none_of(model.parts, [&](const RamBlock* part) {
      return part->removing || part->promised > 0 || leases.count(part->id()) > 0;
    });
  }
  [[nodiscard]] Budget::Use use() const;
};

}  // namespace modelbroker
