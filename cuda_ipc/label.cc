#include "cuda_ipc/label.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <type_traits>

#include "cuda_ipc/memory_file.h"

namespace modelbroker {
namespace {

constexpr std::array<char, 8> kMagic{'M', 'B', 'L', 'A', 'B', 'E', 'L', '1'};
constexpr std::size_t kCheckedBytes = 184;
constexpr const char* kFileName = "modelbroker label";

// The first 192 bytes of a label, as they lie in memory.
struct RawLabel {
  std::array<char, 8> magic;
  std::uint16_t format_version, min_reader_version;
  std::uint32_t header_size;
  std::uint64_t label_size, memory_size, manifest_size, manifest_hash, generation;
  Digest digest;
  std::uint32_t backend, flags;
  std::array<char, 40> device;
  IpcHandle handle;
  std::uint64_t checksum;
};
static_assert(sizeof(RawLabel) == 192 && offsetof(RawLabel, label_size) == 16 && offsetof(RawLabel, digest) == 56 &&
              offsetof(RawLabel, backend) == 72 && offsetof(RawLabel, handle) == 120 &&
              offsetof(RawLabel, checksum) == kCheckedBytes && std::is_trivially_copyable_v<RawLabel>);

tl::unexpected<Error> bad(const std::string& why) { return fail(ErrorCode::kDataLoss, "label: " + why); }

tl::unexpected<Error> unknown(const std::string& why) {
  return fail(ErrorCode::kUnimplemented, "label: " + why + ": it needs a newer modelbroker");
}

std::uint64_t checksum_of(const RawLabel& raw) {
  return hash64(std::as_bytes(std::span(&raw, 1)).first(kCheckedBytes));
}

// In this order: in a later version everything after the second check may differ.
Result<RawLabel> read_header(std::span<const std::byte> bytes) {
  RawLabel raw{};
  if (bytes.size() < kLabelHeader) return bad("it is truncated");
  std::memcpy(&raw, bytes.data(), sizeof raw);
  if (raw.magic != kMagic) return bad("its magic is wrong");
  if (raw.min_reader_version > kLabelVersion) return unknown("version " + std::to_string(raw.min_reader_version));
  if (raw.checksum != checksum_of(raw)) return bad("its header is damaged");
  if (raw.header_size != kLabelHeader || raw.label_size != bytes.size() ||
      raw.manifest_size != bytes.size() - kLabelHeader) {
    return bad("its sizes are not those of its file");
  }
  return raw;
}

Result<Label> label_of(const RawLabel& raw) {
  const std::string_view text(raw.device.data(), raw.device.size());
  const auto device = DeviceId::parse(text.substr(0, text.find('\0')));
  if (!device) return unknown("its device is of another kind");
  if (raw.backend < 1 || raw.backend > 3) return unknown("backend " + std::to_string(raw.backend));
  const auto backend = static_cast<DeviceBackend>(raw.backend);
  if (device->is_host() != (backend == DeviceBackend::kHost)) return bad("its device does not have its backend");
  Label label{.device = *device,
              .backend = backend,
              .memory_size = raw.memory_size,
              .generation = raw.generation,
              .digest = raw.digest};
  if (backend == DeviceBackend::kLegacy) label.handle = raw.handle;
  return label;
}

}  // namespace

std::vector<std::byte> Label::encode() const {
  const std::vector<std::byte> encoded = manifest.encode();
  RawLabel raw{};
  raw.magic = kMagic;
  raw.format_version = raw.min_reader_version = kLabelVersion;
  raw.header_size = static_cast<std::uint32_t>(kLabelHeader);
  raw.label_size = kLabelHeader + encoded.size();
  raw.memory_size = memory_size;
  raw.manifest_size = encoded.size();
  raw.manifest_hash = hash64(encoded);
  raw.generation = generation;
  raw.digest = digest;
  raw.backend = static_cast<std::uint32_t>(backend);
  device.text().copy(raw.device.data(), raw.device.size());
  if (handle) raw.handle = *handle;
  raw.checksum = checksum_of(raw);
  std::vector<std::byte> bytes(raw.label_size);
  std::memcpy(bytes.data(), &raw, sizeof raw);
  std::ranges::copy(encoded, std::span(bytes).subspan(kLabelHeader).begin());
  return bytes;
}

Result<Label> Label::decode(std::span<const std::byte> bytes) {
  MODELBROKER_ASSIGN(const RawLabel raw, read_header(bytes));
  MODELBROKER_ASSIGN(Label label, label_of(raw));
  const auto encoded = bytes.subspan(kLabelHeader);
  if (hash64(encoded) != raw.manifest_hash) return bad("its manifest is damaged");
  MODELBROKER_ASSIGN(label.manifest, Manifest::decode(encoded, label.memory_size));
  return label;
}

Result<Fd> Label::write(Os& os) const {
  const std::vector<std::byte> bytes = encode();
  MODELBROKER_ASSIGN(MemoryFile file, MemoryFile::create(os, kFileName, bytes.size()));
  std::memcpy(file.bytes().data(), bytes.data(), bytes.size());
  MODELBROKER_TRY(file.seal(os));
  return file.open_for_reader(os);
}

Result<Label> Label::read(Os& os, const Fd& sealed) {
  const auto found = os.fstat(sealed.get());
  if (!found) return fail_errno(found.error().number, "looking at a label");
  const auto size = static_cast<std::uint64_t>(found->st_size);
  if (size < kLabelHeader || size > kLabelHeader + kLargestManifest) {
    return bad("no label has " + std::to_string(size) + " bytes");
  }
  MODELBROKER_ASSIGN(const Mapping mapping, MemoryFile::map(os, sealed, kFileName, size));
  return decode(mapping.bytes());
}

}  // namespace modelbroker
