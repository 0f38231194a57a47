// Which model a request means, and what its sender may do with it.
//
// Threads: the loop's only. Failure: not_found, permission_denied and invalid_argument, with the remedy.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "broker/models/loading.h"
#include "wire/messages.h"

namespace modelbroker {

[[nodiscard]] inline bool is_path(std::string_view model) { return model.starts_with('/'); }

// By name or path; another user's private file is not found by its path.
[[nodiscard]] Result<ModelEntry*> find_model(const Rights& rights, Registry& models, const Session& session,
                                             const std::string& model);
// The same, if it is this user's to withdraw and change: a name is its loader's, a path stands for all names.
[[nodiscard]] Result<ModelEntry*> find_own_model(const Rights& rights, Registry& models, const Session& session,
                                                 const std::string& model);
// What a session asks of the loads: the files behind its offers' handles, or the path alone.
[[nodiscard]] Result<Loading::Ask> ask_for_files(TimePoint now, Session& session, const std::string& path,
                                                 const std::string& file, const std::vector<wire::OfferedFile>& files);

}  // namespace modelbroker
