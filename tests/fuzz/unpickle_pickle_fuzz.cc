// A pickle: refused with a typed error, or all tensors that it names lie in their storages.
// Input: the pickle.
#include <string>

#include "tests/support/fuzz.h"
#include "tests/support/pickle_text.h"
#include "unpickle/flatten.h"
#include "unpickle/interpreter.h"

namespace modelbroker {
namespace {

using testing::require;
using testing::require_presentable;

void check(const unpickle::Flattened& flat) {
  for (const unpickle::NamedTensor& tensor : flat.tensors) {
    const unpickle::Placement& placement = tensor.placement;
    require(placement.offset <= tensor.storage_bytes && placement.size <= tensor.storage_bytes - placement.offset,
            "a tensor lies in its storage");
    require(placement.strides.empty() || placement.strides.size() == placement.shape.size(), "a stride a dimension");
    require(!tensor.dtype->word.empty() && valid_utf8(tensor.name), "dtype and name can be told");
  }
  require(valid_utf8(flat.values), "plain values are text");
}

void interpret(std::span<const std::byte> pickle) {
  unpickle::Heap heap;
  unpickle::Interpreter interpreter(pickle, heap);
  const auto root = interpreter.run();
  if (!root) return require_presentable(root.error());
  require(interpreter.consumed() <= pickle.size(), "it reads its own bytes");
  const auto flat = unpickle::flatten(heap, *root);
  if (!flat) return require_presentable(flat.error());
  check(*flat);
}

}  // namespace
}  // namespace modelbroker

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace modelbroker;
  const auto input = std::as_bytes(std::span(data, size));
  interpret(input);
  // Behind what an honest file begins with: storages and tensors are there to be used.
  const std::string begin = "}" + testing::text("a") + testing::two_floats() + "q\x01s";
  std::vector<std::byte> longer;
  const auto bytes = std::as_bytes(std::span<const char>(begin));
  longer.insert(longer.end(), bytes.begin(), bytes.end());
  longer.insert(longer.end(), input.begin(), input.end());
  longer.push_back(std::byte{'.'});
  interpret(longer);
  return 0;
}
