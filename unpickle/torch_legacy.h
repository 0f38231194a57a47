// The form of torch.save before version 1.6, and with _use_new_zipfile_serialization=False.
//
// Five pickles (a magic number, a protocol number, facts of the writer, the object, the storages' keys), then each
// storage in the order of its key: its count as 8 bytes, and its elements.
#pragma once

#include "unpickle/torch_file.h"

namespace modelbroker::unpickle {

[[nodiscard]] bool is_torch_legacy(std::string_view head) noexcept;
[[nodiscard]] Result<TorchFile> read_torch_legacy(const ByteSource& source);

}  // namespace modelbroker::unpickle
