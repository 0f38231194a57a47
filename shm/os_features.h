// The probes behind OsFeatures: what this kernel, container and file system really do.
#pragma once

#include <string>

#include "shm/os.h"

namespace modelbroker {

// Writes and removes one small file in `options.directory`; features named in `options.disabled` stay off.
[[nodiscard]] OsFeatures probe_features(const OsOptions& options);

}  // namespace modelbroker
