// The probes behind OsFeatures: what this kernel, container and file system really do.
#pragma once

#include <string>

#include "shm/os.h"

namespace modelbroker {

// Writes and removes one small file in `options.directory`; features named in `options.disabled` stay off.
[[nodiscard]] OsFeatures probe_features(const OsOptions& options);

// A file in that folder that has no name at any time: whoever is killed leaves nothing. Where the file system cannot
// make one, its name is removed right after.
[[nodiscard]] SysResult<Fd> make_nameless_file(const std::string& directory);

}  // namespace modelbroker
