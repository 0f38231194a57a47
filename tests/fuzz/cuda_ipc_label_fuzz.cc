// A device block's label: refused with a typed error, or all that it says lies inside its memory.
// Input: the label.
#include "cuda_ipc/label.h"
#include "tests/support/fuzz.h"

namespace modelbroker {
namespace {

using testing::require;

constexpr std::size_t kLabelSize = 16, kManifestSize = 32, kManifestHash = 40, kChecksum = 184;  // docs/block-format.md

void check(const Label& label) {
  for (const TensorEntry& tensor : label.manifest.tensors) {
    require(tensor.offset <= label.memory_size && tensor.size <= label.memory_size - tensor.offset,
            "a tensor lies in the memory");
  }
  require(label.device.is_host() == (label.backend == DeviceBackend::kHost), "host is the host's");
  require(label.handle.has_value() == (label.backend == DeviceBackend::kLegacy), "legacy has a handle, and only it");
  const auto again = Label::decode(label.encode());
  require(again.has_value() && *again == label, "a label survives its encoding");
}

void decode(std::span<const std::byte> bytes) {
  const auto label = Label::decode(bytes);
  if (label) return check(*label);
  require(label.error().code == ErrorCode::kDataLoss || label.error().code == ErrorCode::kUnimplemented,
          "damage is data_loss, what is newer unimplemented");
  testing::require_presentable(label.error());
}

void honest_label_is_read() {
  Label label{.device = DeviceId::parse("host:3").value(), .backend = DeviceBackend::kHost, .memory_size = 13};
  label.manifest.name = "m";
  label.manifest.tensors = {{"a", "F16", {2, 3}, 0, 12}, {"b", "U8", {}, 12, 1}};
  const auto decoded = Label::decode(label.encode());
  require(decoded.has_value() && *decoded == label, "an honest label is read");
}

}  // namespace
}  // namespace modelbroker

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace modelbroker;
  const auto input = std::as_bytes(std::span(data, size));
  decode(input);
  // With hashes, then with sizes put right, so that what lies behind them is reached.
  std::vector<std::byte> bytes(input.begin(), input.end());
  bytes.resize(std::max<std::size_t>(size, kLabelHeader));
  const auto put = [&](std::size_t at, std::uint64_t value) { std::memcpy(bytes.data() + at, &value, sizeof value); };
  for (const bool with_sizes : {false, true}) {
    if (with_sizes) put(kLabelSize, bytes.size());
    if (with_sizes) put(kManifestSize, bytes.size() - kLabelHeader);
    put(kManifestHash, hash64(std::span(bytes).subspan(kLabelHeader)));
    put(kChecksum, hash64(std::span(bytes).first(kChecksum)));
    decode(bytes);
  }
  honest_label_is_read();
  return 0;
}
