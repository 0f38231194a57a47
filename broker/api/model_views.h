// What replies say of models.
//
// Threads: the loop's only.
#pragma once

#include "broker/models/books.h"
#include "broker/models/loads.h"
#include "wire/messages.h"

namespace modelbroker {

// `uid`: who asks. Where another user's private file lies is not told.
[[nodiscard]] wire::ModelInfo describe(const Books& books, const ModelEntry& model, uid_t uid);
// All models by name: resident, being loaded, draining.
[[nodiscard]] wire::ModelListReply list_models(const Books& books, const Loads& loads, uid_t uid);

}  // namespace modelbroker
