// The zip form of torch.save, since version 1.6.
#pragma once

#include "unpickle/torch_file.h"

namespace modelbroker::unpickle {

[[nodiscard]] Result<TorchFile> read_torch_zip(const ByteSource& source);

}  // namespace modelbroker::unpickle
