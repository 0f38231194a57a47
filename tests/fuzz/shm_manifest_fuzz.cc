// A block's manifest: refused with a typed error, or a list of tensors that lie inside the payload.
// Input: the payload's size (u64), then the manifest.
#include <set>
#include <string>

#include "shm/dtype.h"
#include "shm/manifest.h"
#include "tests/support/fuzz.h"

namespace modelbroker {
namespace {

using testing::require;

void check(const Manifest& manifest, std::uint64_t payload_size) {
  std::set<std::string> names;
  std::uint64_t before = 0;
  for (const TensorEntry& tensor : manifest.tensors) {
    require(names.insert(tensor.name).second, "names are unique");
    require(tensor.offset <= payload_size && tensor.size <= payload_size - tensor.offset,
            "a tensor lies in the payload");
    require(tensor.offset >= before, "tensors stand in the order of their offsets");
    before = tensor.offset;
    require(check_tensor_size(tensor.dtype, tensor.shape, tensor.size).has_value(),
            "a tensor has the bytes of its shape, or an opaque dtype");
  }
  const auto again = Manifest::decode(manifest.encode(), payload_size);
  require(again.has_value() && *again == manifest, "a manifest survives its encoding");
}

void honest_manifest_is_read() {
  Manifest manifest;
  manifest.name = "m";
  manifest.format = "safetensors";
  manifest.tensors = {{"a", "F16", {2, 3}, 0, 12}, {"b", "U8", {}, 12, 1}};
  const auto decoded = Manifest::decode(manifest.encode(), 13);
  require(decoded.has_value() && *decoded == manifest, "an honest manifest is read");
}

}  // namespace
}  // namespace modelbroker

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace modelbroker;
  testing::Input input(data, size);
  const auto payload_size = input.number<std::uint64_t>();
  const auto manifest = Manifest::decode(input.all(), payload_size);
  if (manifest) {
    check(*manifest, payload_size);
  } else {
    require(manifest.error().code == ErrorCode::kDataLoss || manifest.error().code == ErrorCode::kUnimplemented,
            "damage is data_loss, what is newer unimplemented");
    testing::require_presentable(manifest.error());
  }
  honest_manifest_is_read();
  return 0;
}
