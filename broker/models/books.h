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
#include "broker/models/evicted.h"
#include "broker/models/store.h"
#include "broker/tier/budget.h"
#include "broker/tier/eviction.h"
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
        store(os_) {}

  Os& os;
  const Clock& clock;
  Config config;  // what may change while we run does so at SIGHUP
  const Rights rights;
  BlockDirectory directory;
  BootId boot_id{};
  TimePoint started;
  RamStore store;
  LeaseBook leases;
  Sessions sessions;
  Budget budget{0};
  EvictedNames evicted;
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
  // What each of its names leads to when it is gone.
  using GoneNames = std::vector<std::pair<std::string, EvictedNames::Model>>;
  [[nodiscard]] GoneNames names_of(const Resident& resident) const {
    GoneNames names;
    for (const std::string& name : resident.names) {
      names.emplace_back(name, EvictedNames::Model{.given = store.given(name),
                                                   .type = resident.type,
                                                   .keep_alive = resident.keep_alive,
                                                   .pinned = resident.pinned,
                                                   .source = resident.source});
    }
    return names;
  }
  // The other way round: as one of its names was kept.
  static void keep_as(Resident& resident, const EvictedNames::Model& evicted) {
    resident.type = evicted.type;
    resident.keep_alive = evicted.keep_alive;
    resident.pinned = evicted.pinned;
  }
  void used(Resident& resident) const {
    resident.last_used = clock.now();
    resident.value = value_when_used(cache_age, resident.seconds_to_load, resident.bytes());
  }
  [[nodiscard]] static Rights::Owner owner_of(const Resident& resident) {
    return {resident.loader, resident.source_uid, resident.is_private};
  }
  [[nodiscard]] bool may_attach(uid_t uid, const Resident& resident) const {
    return rights.attach(uid, owner_of(resident));
  }
  // Whether all, or any, of its names are this user's to withdraw and change.
  [[nodiscard]] bool manages_all(uid_t uid, const Resident& resident) const {
    return std::ranges::all_of(resident.names,
                               [&](const std::string& name) { return rights.manage(uid, store.loader_of(name)); });
  }
  // The same of those names that were given to the file at `path`.
  [[nodiscard]] bool manages(uid_t uid, const Resident& resident, std::string_view path) const {
    return std::ranges::all_of(resident.names, [&](const std::string& name) {
      const GivenName& given = store.given(name);
      return given.path != path || rights.manage(uid, given.loader);
    });
  }
  [[nodiscard]] bool manages_any(uid_t uid, const Resident& resident) const {
    return std::ranges::any_of(resident.names,
                               [&](const std::string& name) { return rights.manage(uid, store.loader_of(name)); });
  }
  // By our own word; the kernel's is asked before it is done.
  [[nodiscard]] bool evictable(const Resident& resident) const {
    return !resident.draining() && !resident.pinned && !resident.removing && resident.promised == 0 &&
           leases.count(resident.block->id()) == 0;
  }
  [[nodiscard]] Budget::Use use() const {
    const RamStore::Totals totals = store.totals();
    Budget::Use use{.made = totals.made,
                    .draining = totals.draining,
                    .pinned = totals.pinned,
                    .removing = totals.removing,
                    .foreign = foreign.bytes};
    for (const auto& [id, resident] : store.all()) {
      if (leases.count(id) > 0) use.leased += resident.bytes();
      if (evictable(resident)) use.evictable += resident.bytes();
    }
    return use;
  }
};

}  // namespace modelbroker
