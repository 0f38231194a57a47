// What replies say of models.
//
// Threads: the loop's only.
#pragma once

#include "broker/models/books.h"
#include "broker/models/loading.h"
#include "wire/messages.h"

namespace modelbroker {

// `uid`: who asks. Where another user's private file lies is not told.
[[nodiscard]] wire::ModelInfo describe(const Books& books, const ModelEntry& model, uid_t uid);
// Of a name that is remembered only. Its path is told to whoever may manage it.
[[nodiscard]] wire::ModelInfo describe(const Books& books, const std::string& name,
                                       const RememberedNames::Model& remembered, uid_t uid);
// All models by name: resident, being loaded, draining; with `all` those that are remembered too.
[[nodiscard]] wire::ModelListReply list_models(const Books& books, const Loading& loading, uid_t uid, bool all = false);

}  // namespace modelbroker
