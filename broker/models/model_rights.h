// What a user may do with a model. Threads: the loop's only.
#pragma once

#include <string_view>

#include "broker/models/registry.h"
#include "broker/workers/rights.h"

namespace modelbroker {

[[nodiscard]] bool may_attach(const Rights& rights, uid_t uid, const ModelEntry& model);
// Whether all of its names are this user's to withdraw and change.
[[nodiscard]] bool manages_all(const Rights& rights, const Registry& models, uid_t uid, const ModelEntry& model);
// The same of those names that were given to the file at `path`.
[[nodiscard]] bool manages(const Rights& rights, const Registry& models, uid_t uid, const ModelEntry& model,
                           std::string_view path);

}  // namespace modelbroker
