#include "broker/models/model_rights.h"

#include <algorithm>
#include <string>

#include "broker/ram/ram_store.h"

namespace modelbroker {

bool may_attach(const Rights& rights, uid_t uid, const ModelEntry& model) {
  return std::ranges::all_of(model.parts, [&](const RamBlock* part) { return may_attach(rights, uid, *part); });
}

bool manages_all(const Rights& rights, const Registry& models, uid_t uid, const ModelEntry& model) {
  return std::ranges::all_of(model.names,
                             [&](const std::string& name) { return rights.manage(uid, models.loader_of(name)); });
}

bool manages(const Rights& rights, const Registry& models, uid_t uid, const ModelEntry& model, std::string_view path) {
  return std::ranges::all_of(model.names, [&](const std::string& name) {
    const GivenName& given = models.given(name);
    return given.path != path || rights.manage(uid, given.loader);
  });
}

}  // namespace modelbroker
