#include "cuda_ipc/label.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>

#include "tests/support/faulty_os.h"
#include "tests/support/few_descriptors.h"

namespace modelbroker {
namespace {

constexpr std::uint64_t kMemory = 2U << 20U;
constexpr std::size_t kHeaderChecksum = 184, kManifestHash = 40;  // docs/block-format.md

Label sample_label() {
  Label label{.device = DeviceId::parse("host:0").value(), .backend = DeviceBackend::kHost, .memory_size = kMemory};
  label.generation = 77;
  label.digest = {1, 2, 3};
  label.manifest.name = "m";
  label.manifest.type = "unet";
  label.manifest.format = "safetensors";
  label.manifest.source_path = "/models/m.safetensors";
  label.manifest.source = {1, 2, 300, -4, 5};
  label.manifest.set = BlockSet{.id = "s", .index = 0, .parts = {{"m.safetensors", 1, 2, 300, -4}}};
  label.manifest.tensors = {{"a", "F16", {2, 3}, 0, 12}, {"b", "U8", {}, 256, 1}};
  return label;
}

Label legacy_label() {
  Label label = sample_label();
  label.device = DeviceId::parse("GPU-8f2c0b1e-12ab-34cd-56ef-0123456789ab").value();
  label.backend = DeviceBackend::kLegacy;
  label.handle.emplace().fill(std::byte{0xa5});
  return label;
}

template <class Number>
void put(std::vector<std::byte>& bytes, std::size_t at, Number value) {
  std::memcpy(bytes.data() + at, &value, sizeof value);
}

// Hashes that are right again after a change.
void put_right(std::vector<std::byte>& bytes) {
  put(bytes, kManifestHash, hash64(std::span(bytes).subspan(kLabelHeader)));
  put(bytes, kHeaderChecksum, hash64(std::span(bytes).first(kHeaderChecksum)));
}

// ---- bytes

TEST(Label, SurvivesItsEncoding) {
  Label vmm = legacy_label();
  vmm.backend = DeviceBackend::kVmm;
  vmm.handle.reset();
  Label empty{.device = vmm.device, .backend = DeviceBackend::kVmm, .memory_size = 1};
  for (const Label& label : {sample_label(), legacy_label(), vmm, empty}) {
    const auto again = Label::decode(label.encode());
    ASSERT_TRUE(again) << again.error().message;
    EXPECT_TRUE(*again == label);
  }
}

TEST(Label, RefusesWhatIsNotRight) {
  using Bytes = std::vector<std::byte>;
  struct Case {
    std::string what;
    std::function<void(Bytes&)> change;
    ErrorCode code = ErrorCode::kDataLoss;
    bool with_right_hashes = true;
  };
  const auto set = [](std::size_t at, auto value) { return [=](Bytes& bytes) { put(bytes, at, value); }; };
  const std::vector<Case> cases{
      {"nothing", [](Bytes& bytes) { bytes.clear(); }, ErrorCode::kDataLoss, false},
      {"a header cut off", [](Bytes& bytes) { bytes.resize(255); }, ErrorCode::kDataLoss, false},
      {"a manifest cut off", [](Bytes& bytes) { bytes.pop_back(); }},
      {"a byte too many", [](Bytes& bytes) { bytes.push_back(std::byte{0}); }},
      {"a damaged header", set(48, std::uint64_t{78}), ErrorCode::kDataLoss, false},
      {"a damaged manifest", [](Bytes& bytes) { bytes.back() ^= std::byte{1}; }, ErrorCode::kDataLoss, false},
      {"another magic", set(0, std::uint8_t{0})},
      {"a newer version", set(10, std::uint16_t{2}), ErrorCode::kUnimplemented},
      {"a newer version with another checksum", set(10, std::uint16_t{2}), ErrorCode::kUnimplemented, false},
      {"another header size", set(12, std::uint32_t{512})},
      {"another label size", set(16, std::uint64_t{1})},
      {"another manifest size", set(32, std::uint64_t{1})},
      {"memory that ends in a tensor", set(24, std::uint64_t{256})},
      {"no memory", set(24, std::uint64_t{0})},
      {"no backend", set(72, std::uint32_t{0}), ErrorCode::kUnimplemented},
      {"a newer backend", set(72, std::uint32_t{4}), ErrorCode::kUnimplemented},
      {"a backend of more than eight bits", set(72, std::uint32_t{257}), ErrorCode::kUnimplemented},
      {"a GPU's backend", set(72, std::uint32_t{2})},
      {"another kind of device", set(80, 'H'), ErrorCode::kUnimplemented},
      {"no device", set(80, '\0'), ErrorCode::kUnimplemented},
      {"a manifest that is none", [](Bytes& bytes) { bytes[kLabelHeader] = std::byte{0xc1}; }},
  };
  for (const Case& one : cases) {
    SCOPED_TRACE(one.what);
    Bytes bytes = sample_label().encode();
    one.change(bytes);
    if (one.with_right_hashes) put_right(bytes);
    const auto refused = Label::decode(bytes);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, one.code) << refused.error().message;
  }
}

TEST(Label, IsReadWhateverItsUnusedFieldsAre) {
  auto bytes = sample_label().encode();
  put(bytes, 8, std::uint16_t{9});            // a later writer that this version can still read
  put(bytes, 76, std::uint32_t{0xffffffff});  // flags
  put(bytes, 120, std::uint64_t{1});          // a handle that host does not have
  put(bytes, 255, std::uint8_t{1});
  put_right(bytes);
  EXPECT_TRUE(Label::decode(bytes).value() == sample_label());
}

// ---- golden: never change the file, never loosen a value here

TEST(Label, ReadsVersionOne) {
  std::ifstream file(MODELBROKER_GOLDEN_DIRECTORY "/label-v1", std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const auto label = Label::decode(std::as_bytes(std::span(text)));
  ASSERT_TRUE(label) << label.error().message;
  EXPECT_EQ(label->device.text(), "GPU-8f2c0b1e-12ab-34cd-56ef-0123456789ab");
  EXPECT_EQ(label->backend, DeviceBackend::kLegacy);
  EXPECT_EQ(label->memory_size, 4U << 20U);
  EXPECT_EQ(label->generation, 1234567890123456789U);
  for (std::size_t i = 0; i < 16; ++i) EXPECT_EQ(label->digest[i], i);
  for (std::size_t i = 0; i < 64; ++i) EXPECT_EQ(label->handle.value()[i], static_cast<std::byte>(i + 1));
  Manifest manifest;
  manifest.name = "golden";
  manifest.type = "unet";
  manifest.format = "safetensors";
  manifest.source_path = "/models/golden.safetensors";
  manifest.source = {(1ULL << 63) + 5, 123456789, 11234, -5, 1700000000123456789};
  manifest.metadata = {{"format", "pt"}};
  manifest.tensors = {{"first", "BF16", {10, 20}, 0, 400}, {"second", "F32", {2399}, 512, 9596}};
  EXPECT_EQ(label->manifest, manifest);
  // And writes it; the manifest has a key that this version does not know, so sizes and hashes differ.
  const auto again = label->encode();
  EXPECT_EQ(std::memcmp(again.data(), text.data(), 16), 0);
  EXPECT_EQ(std::memcmp(again.data() + 48, text.data() + 48, kHeaderChecksum - 48), 0);
}

// ---- files

class LabelFile : public ::testing::Test {
 protected:
  // A memory file of these bytes, with these seals.
  [[nodiscard]] Fd file_of(std::span<const std::byte> bytes, int seals) {
    Fd fd = os_->memory_file("label").value();
    EXPECT_EQ(::pwrite(fd.get(), bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
    EXPECT_TRUE(os_->add_seals(fd.get(), seals));
    return fd;
  }

  static constexpr int kAll = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
  const std::unique_ptr<Os> os_ = make_plain_os();
};

TEST_F(LabelFile, IsWrittenSealedAndRead) {
  const Fd fd = legacy_label().write(*os_).value();
  EXPECT_EQ(os_->open_flags(fd.get()).value() & O_ACCMODE, O_RDONLY);
  EXPECT_EQ(os_->seals_of(fd.get()).value() & kAll, kAll);
  EXPECT_TRUE(Label::read(*os_, fd).value() == legacy_label());
  EXPECT_TRUE(Label::read(*os_, file_of(sample_label().encode(), kAll)).value() == sample_label());
}

TEST_F(LabelFile, IsRefusedUnlessItCanNotChange) {
  const auto bytes = sample_label().encode();
  for (const int missing : {F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE}) {
    EXPECT_EQ(Label::read(*os_, file_of(bytes, (kAll & ~missing) | F_SEAL_FUTURE_WRITE)).error().code,
              ErrorCode::kInvalidArgument)
        << missing;
  }
  EXPECT_EQ(Label::read(*os_, file_of(std::span(bytes).first(100), kAll)).error().code, ErrorCode::kDataLoss);
  EXPECT_EQ(Label::read(*os_, file_of(std::span(bytes).first(300), kAll)).error().code, ErrorCode::kDataLoss);
  EXPECT_FALSE(Label::read(*os_, Fd(::open("/dev/null", O_RDONLY | O_CLOEXEC))));
  EXPECT_FALSE(Label::read(*os_, Fd(::open("/proc/self/exe", O_RDONLY | O_CLOEXEC))));
  EXPECT_FALSE(Label::read(*os_, Fd()));
  Fd large = os_->memory_file("label").value();
  ASSERT_TRUE(os_->ftruncate(large.get(), std::uint64_t{1} << 40U));
  ASSERT_TRUE(os_->add_seals(large.get(), kAll));
  EXPECT_EQ(Label::read(*os_, large).error().code, ErrorCode::kDataLoss);
}

TEST_F(LabelFile, EveryCallFailsWithATypedErrorAndNothingLeft) {
  testing::FaultyOs faulty(*os_);
  for (const int error_number : {EIO, ENOMEM, EMFILE}) {
    for (std::uint64_t call = 1;; ++call) {
      SCOPED_TRACE("call " + std::to_string(call) + " fails with " + std::strerror(error_number));
      ASSERT_LT(call, 50U);
      const int lowest = testing::lowest_descriptor();
      faulty.fail_at(call, error_number);
      const auto lived = sample_label().write(faulty).and_then([&](const Fd& fd) { return Label::read(faulty, fd); });
      EXPECT_EQ(testing::lowest_descriptor(), lowest);
      if (!lived) {
        EXPECT_EQ(lived.error().code, error_from_errno(error_number, "").code) << lived.error().message;
      }
      if (!faulty.failed_one()) {
        EXPECT_TRUE(lived) << lived.error().message;
        break;
      }
    }
  }
}

}  // namespace
}  // namespace modelbroker
