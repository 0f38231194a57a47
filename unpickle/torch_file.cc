#include "unpickle/torch_file.h"

#include <algorithm>
#include <array>
#include <string>

#include "unpickle/bounds.h"
#include "unpickle/heap.h"
#include "unpickle/interpreter.h"
#include "unpickle/torch_legacy.h"
#include "unpickle/torch_zip.h"

namespace modelbroker::unpickle {
namespace {

struct Magic {
  std::size_t at;
  std::string_view bytes;
  std::string_view what;
};

constexpr auto kOtherFiles = std::to_array<Magic>({
    {257, "ustar", "a tar archive"},
    {0, "\x1f\x8b", "compressed by gzip"},
    {0, "BZh", "compressed by bzip2"},
    {0,
     "\xfd"
     "7zXZ",
     "compressed by xz"},
    {0, "\x28\xb5\x2f\xfd", "compressed by zstd"},
});

bool has(std::string_view head, const Magic& magic) {
  return head.size() >= magic.at && head.substr(magic.at).starts_with(magic.bytes);
}

// A pickle that is neither: what it wants is told before anything else.
Result<TorchFile> refuse_pickle(const ByteSource& source) {
  MODELBROKER_ASSIGN(const auto bytes, source.read(0, std::min(source.size(), kMaxPickleBytes)));
  Heap heap;
  Interpreter interpreter(bytes, heap);
  MODELBROKER_TRY(interpreter.run());
  return fail(ErrorCode::kInvalidArgument, "it is a pickle but not a file of torch.save: it holds no tensors");
}

}  // namespace

Result<TorchFile> read_torch_file(const ByteSource& source) {
  constexpr std::uint64_t kHead = 512;
  MODELBROKER_ASSIGN(const auto head, source.read(0, std::min(source.size(), kHead)));
  const std::string_view text = text_of(head);
  if (text.starts_with("PK")) return read_torch_zip(source);
  if (is_torch_legacy(text)) return read_torch_legacy(source);
  const auto* const other = std::ranges::find_if(kOtherFiles, [&](const Magic& magic) { return has(text, magic); });
  if (other != kOtherFiles.end()) {
    return fail(ErrorCode::kUnimplemented,
                "it is " + std::string(other->what) + ": unpack it, or load it with torch and torch.save() it again");
  }
  return refuse_pickle(source);
}

}  // namespace modelbroker::unpickle
