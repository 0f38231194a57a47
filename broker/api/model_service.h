// ModelService: the requests about models: load, unload, cancel, list, get, pin, unpin, get_model_info.
//
// Threads: the loop's only.
#pragma once

#include <string>
#include <vector>

#include "broker/api/call.h"
#include "broker/api/model_views.h"
#include "broker/api/settled.h"
#include "broker/base/loop.h"
#include "broker/models/loading.h"
#include "broker/models/state_keeper.h"
#include "broker/models/withdrawal.h"
#include "broker/ram/reaper.h"

namespace modelbroker {

class ModelService {
 public:
  ModelService(Environment& env, Workers& workers, RamStore& ram, Registry& models, const RamTier& tier,
               const ModelViews& views, Loop& loop, Settled& settled, Loading& loading, StateKeeper& keeper,
               Reaper& reaper, Withdrawal& withdrawal)
      : env_(env),
        workers_(workers),
        ram_(ram),
        models_(models),
        tier_(tier),
        views_(views),
        loop_(loop),
        settled_(settled),
        loading_(loading),
        keeper_(keeper),
        reaper_(reaper),
        withdrawal_(withdrawal) {}

  void load(Session& session, const wire::LoadModel& data, const Reply<wire::LoadModelReply>& reply);
  void unload(Session& session, const wire::UnloadModel& data, const Reply<wire::UnloadModelReply>& reply);
  void cancel(Session& session, const wire::ModelName& data, const Reply<wire::CancelReply>& reply);
  void list(Session& session, const wire::ModelList& data, const Reply<wire::ModelListReply>& reply);
  void get(Session& session, const wire::ModelName& data, const Reply<wire::ModelGetReply>& reply);
  void pin(Session& session, const wire::ModelName& data, const Reply<wire::PinReply>& reply);
  void unpin(Session& session, const wire::ModelName& data, const Reply<wire::PinReply>& reply);
  void get_model_info(Session& session, const wire::GetModelInfo& data, const Reply<wire::GetModelInfoReply>& reply);

 private:
  void forget(const std::vector<std::string>& names);
  [[nodiscard]] Result<bool> forget_remembered(const Session& session, const std::string& model);
  [[nodiscard]] std::vector<std::string> names_meant(const ModelEntry& model, const std::string& asked) const;
  void take_names(const ModelEntry& model, const std::vector<std::string>& names, wire::UnloadModelReply outcome,
                  const Reply<wire::UnloadModelReply>& reply);
  void unload_all(ModelEntry& model, bool wait, const wire::UnloadModelReply& outcome,
                  const Reply<wire::UnloadModelReply>& reply);
  void set_pinned(const Session& session, const std::string& model, bool pinned, const Reply<wire::PinReply>& reply);

  Environment& env_;
  Workers& workers_;
  RamStore& ram_;
  Registry& models_;
  const RamTier& tier_;
  const ModelViews& views_;
  Loop& loop_;
  Settled& settled_;
  Loading& loading_;
  StateKeeper& keeper_;
  Reaper& reaper_;
  Withdrawal& withdrawal_;
};

}  // namespace modelbroker
