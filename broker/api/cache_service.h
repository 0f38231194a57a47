// CacheService: the tiers as a whole: cache.status, cache.scrub and events.snapshot.
//
// Threads: the loop's only.
#pragma once

#include "broker/api/call.h"
#include "broker/api/settled.h"
#include "broker/base/event_sink.h"
#include "broker/models/books.h"
#include "broker/models/loading.h"
#include "broker/models/scrubber.h"

namespace modelbroker {

class CacheService {
 public:
  CacheService(Books& books, EventSink& events, Settled& settled, Loading& loading, Scrubber& scrubber)
      : books_(books), events_(events), settled_(settled), loading_(loading), scrubber_(scrubber) {}

  void status(Session& session, const wire::Empty& data, const Reply<wire::StatusReply>& reply);
  void scrub(Session& session, const wire::Scrub& data, const Reply<wire::ScrubReply>& reply);
  void snapshot(Session& session, const wire::Empty& data, const Reply<wire::EventsSnapshotReply>& reply);

 private:
  [[nodiscard]] wire::StatusReply status_now() const;

  Books& books_;
  EventSink& events_;
  Settled& settled_;
  Loading& loading_;
  Scrubber& scrubber_;
};

}  // namespace modelbroker
