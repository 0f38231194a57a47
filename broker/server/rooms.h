// Rooms: the broker below its doors, put together: what holds models, and what answers requests about them.
//
// Made once what an earlier broker left is adopted. The members stand in the order of their making, and are destroyed
// in reverse, so that jobs end before what they use. Threads: the loop's.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "broker/api/cache_service.h"
#include "broker/api/lease_service.h"
#include "broker/api/model_service.h"
#include "broker/api/model_views.h"
#include "broker/api/settled.h"
#include "broker/base/environment.h"
#include "broker/base/event_sink.h"
#include "broker/base/jobs.h"
#include "broker/models/loading.h"
#include "broker/models/ram_tier.h"
#include "broker/models/state_keeper.h"
#include "broker/models/withdrawal.h"
#include "broker/ram/block_loads.h"
#include "broker/ram/load_notes.h"
#include "broker/ram/reaper.h"
#include "broker/ram/scrubber.h"
#include "broker/tier/admission.h"
#include "broker/tier/expiry.h"
#include "broker/workers/workers.h"

namespace modelbroker {

// What the rooms work on.
struct Facts {
  Environment env;
  Workers workers;
  RamStore ram;
  Registry models{};
};

struct Rooms {
  static constexpr std::size_t kJobThreads = 8;
  static constexpr std::size_t kKindsOfJobs = 4;  // general ones, state, scrubbing, loads
  struct State {                                  // the database, see StateKeeper
    std::string path;
    std::unique_ptr<StateDb> db;
    StateKeeper::HoldPlace hold_place;
  };
  Rooms(Facts& facts, Loop& loop, EventSink& events, LoadNotes& notes, State state);
  ~Rooms();
  Rooms(const Rooms&) = delete;
  Rooms& operator=(const Rooms&) = delete;

  Facts& facts;
  Jobs jobs;
  StateKeeper keeper;
  Reaper reaper;
  Withdrawal withdrawal;
  RamTier tier;
  Admission admission;
  Expiry expiry;
  Scrubber scrubber;
  BlockLoads block_loads;
  Loading loading;
  Settled settled;
  ModelViews views;
  LeaseService leases;
  ModelService model_service;
  CacheService cache;
};

}  // namespace modelbroker
