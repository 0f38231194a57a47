// CacheService: the tiers as a whole: cache.status, cache.scrub and events.snapshot.
//
// Threads: the loop's only.
#pragma once

#include "broker/api/call.h"
#include "broker/api/model_views.h"
#include "broker/api/settled.h"
#include "broker/base/event_sink.h"
#include "broker/ram/scrubber.h"

namespace modelbroker {

class CacheService {
 public:
  CacheService(const Environment& env, const Workers& workers, RamStore& ram, Registry& models, const RamTier& tier,
               const ModelViews& views, EventSink& events, Settled& settled, Scrubber& scrubber)
      : env_(env),
        workers_(workers),
        ram_(ram),
        models_(models),
        tier_(tier),
        views_(views),
        events_(events),
        settled_(settled),
        scrubber_(scrubber) {}

  void status(Session& session, const wire::Empty& data, const Reply<wire::StatusReply>& reply);
  void scrub(Session& session, const wire::Scrub& data, const Reply<wire::ScrubReply>& reply);
  void snapshot(Session& session, const wire::Empty& data, const Reply<wire::EventsSnapshotReply>& reply);

 private:
  [[nodiscard]] wire::StatusReply status_now() const;

  const Environment& env_;
  const Workers& workers_;
  RamStore& ram_;
  Registry& models_;
  const RamTier& tier_;
  const ModelViews& views_;
  EventSink& events_;
  Settled& settled_;
  Scrubber& scrubber_;
};

}  // namespace modelbroker
