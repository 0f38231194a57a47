// LeaseService: model.attach, model.detach and lease.restate; every lease begins and ends here.
//
// Threads: the loop's only.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "broker/api/call.h"
#include "broker/base/event_sink.h"
#include "broker/models/loading.h"
#include "broker/ram/reaper.h"
#include "broker/ram/scrubber.h"
#include "broker/tier/admission.h"
#include "broker/tier/expiry.h"
#include "broker/workers/workers.h"

namespace modelbroker {

class LeaseService {
 public:
  LeaseService(Environment& env, Workers& workers, RamStore& ram, Registry& models, RamTier& tier, EventSink& events,
               Loading& loading, Scrubber& scrubber, Reaper& reaper, Admission& admission, Expiry& expiry)
      : env_(env),
        workers_(workers),
        ram_(ram),
        models_(models),
        tier_(tier),
        events_(events),
        loading_(loading),
        scrubber_(scrubber),
        reaper_(reaper),
        admission_(admission),
        expiry_(expiry) {}

  void attach(Session& session, const wire::Attach& data, const Reply<wire::AttachReply>& reply);
  void detach(Session& session, const wire::Detach& data, const Reply<wire::DetachReply>& reply);
  void restate(Session& session, const wire::Restate& data, const Reply<wire::RestateReply>& reply);

  // All leases of a session that ends. Then, when it is answered, let_go() of their blocks.
  LeaseBook::Ended end_all(const Session& session);
  // A block is used until its last lease ends: what waits for these blocks is looked at again.
  void let_go(const std::vector<std::string>& blocks);

 private:
  void attach_by_load(Loading::Ask ask, const Reply<wire::AttachReply>& reply, const std::string& evicted);
  [[nodiscard]] wire::AttachReply grant(Session& session, std::uint64_t lease, ModelEntry& model,
                                        const std::string& name, Outcome outcome);
  void book(const Session& session, std::uint64_t number, const std::string& model,
            const std::vector<std::string>& blocks);

  Environment& env_;
  Workers& workers_;
  RamStore& ram_;
  Registry& models_;
  RamTier& tier_;
  EventSink& events_;
  Loading& loading_;
  Scrubber& scrubber_;
  Reaper& reaper_;
  Admission& admission_;
  Expiry& expiry_;
};

}  // namespace modelbroker
