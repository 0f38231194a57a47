// ModelViews: what replies say of models.
//
// Threads: the loop's only.
#pragma once

#include <string>
#include <vector>

#include "broker/base/environment.h"
#include "broker/models/loading.h"
#include "broker/workers/workers.h"
#include "wire/messages.h"

namespace modelbroker {

class ModelViews {
 public:
  ModelViews(const Environment& env, const Workers& workers, const RamStore& ram, const Registry& models,
             const RamTier& tier, const Loading& loading)
      : env_(env), workers_(workers), ram_(ram), models_(models), tier_(tier), loading_(loading) {}

  // `uid`: who asks. Where another user's private file lies is not told.
  [[nodiscard]] wire::ModelInfo of(const ModelEntry& model, uid_t uid) const;
  // Of a name that is remembered only. Its path is told to whoever may manage it.
  [[nodiscard]] wire::ModelInfo of(const std::string& name, const RememberedNames::Model& remembered, uid_t uid) const;
  // All models by name: resident, being loaded, draining; with `all` those that are remembered too.
  [[nodiscard]] wire::ModelListReply list(uid_t uid, bool all = false) const;

 private:
  [[nodiscard]] wire::ModelInfo of(const RamBlock& block, uid_t uid) const;
  void add_blocks(wire::ModelInfo& info, std::vector<wire::ModelBlock> blocks) const;
  [[nodiscard]] std::vector<wire::LeaseHolder> leases_on(const std::vector<wire::ModelBlock>& blocks) const;

  const Environment& env_;
  const Workers& workers_;
  const RamStore& ram_;
  const Registry& models_;
  const RamTier& tier_;
  const Loading& loading_;
};

}  // namespace modelbroker
