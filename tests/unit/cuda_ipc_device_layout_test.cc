#include "cuda_ipc/device_layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <random>
#include <string>

namespace modelbroker {
namespace {

using Ranges = std::vector<ByteRange>;

Manifest manifest_of(const Ranges& tensors) {
  Manifest manifest;
  manifest.name = "m";
  manifest.type = "unet";
  manifest.source = {1, 2, 3, 4, 5};
  for (const ByteRange& tensor : tensors) {
    manifest.tensors.push_back(
        {"t" + std::to_string(manifest.tensors.size()), "U8", {tensor.size}, tensor.offset, tensor.size});
  }
  return manifest;
}

std::vector<std::uint64_t> offsets_of(const DeviceLayout& layout) {
  std::vector<std::uint64_t> offsets;
  for (const TensorEntry& tensor : layout.manifest.tensors) offsets.push_back(tensor.offset);
  return offsets;
}

struct Case {
  std::string what;
  Ranges tensors;
  std::vector<std::uint64_t> offsets;
  std::vector<CopyRun> runs;
  std::uint64_t size = 4096;
};

TEST(DeviceLayout, PlacesAndMerges) {
  const std::vector<Case> cases{
      {"no tensor", {}, {}, {}},
      {"an empty one", {{7, 0}}, {0}, {}},
      {"one", {{0, 100}}, {0}, {{0, 0, 100}}},
      {"one behind what no tensor covers", {{1000, 100}}, {0}, {{1000, 0, 100}}},
      {"aligned neighbours are one run", {{0, 512}, {512, 256}, {768, 10}}, {0, 512, 768}, {{0, 0, 778}}},
      {"others are not", {{0, 100}, {100, 256}}, {0, 256}, {{0, 0, 100}, {100, 256, 256}}},
      {"a misaligned file is realigned and stays one run", {{3, 256}, {259, 256}}, {0, 256}, {{3, 0, 512}}},
      {"the same distance over a gap is two runs", {{0, 100}, {256, 100}}, {0, 256}, {{0, 0, 100}, {256, 256, 100}}},
      {"a view", {{512, 1000}, {612, 50}, {1600, 4}}, {0, 100, 1024}, {{512, 0, 1000}, {1600, 1024, 4}}},
      {"tied ones", {{10, 300}, {10, 300}, {310, 8}}, {0, 0, 512}, {{10, 0, 300}, {310, 512, 8}}},
      {"the longer of two that begin together", {{0, 10}, {0, 300}, {299, 1}}, {0, 0, 299}, {{0, 0, 300}}},
      {"a chain", {{0, 100}, {50, 100}, {149, 51}, {200, 6}}, {0, 50, 149, 256}, {{0, 0, 200}, {200, 256, 6}}},
      {"an empty one inside another",
       {{0, 100}, {40, 0}, {100, 0}, {100, 4}},
       {0, 40, 256, 256},
       {{0, 0, 100}, {100, 256, 4}}},
      {"a full page", {{0, 4096}}, {0}, {{0, 0, 4096}}},
      {"a byte more", {{0, 4096}, {4096, 1}}, {0, 4096}, {{0, 0, 4097}}, 8192},
  };
  for (const Case& one : cases) {
    SCOPED_TRACE(one.what);
    const DeviceLayout layout = device_layout(manifest_of(one.tensors), 4096);
    EXPECT_EQ(offsets_of(layout), one.offsets);
    EXPECT_EQ(layout.runs, one.runs);
    EXPECT_EQ(layout.size, one.size);
  }
}

TEST(DeviceLayout, ChangesNothingButOffsets) {
  const Manifest manifest = manifest_of({{8, 100}, {108, 100}});
  DeviceLayout layout = device_layout(manifest, kDeviceAlignment);
  EXPECT_EQ(layout.size, 512U);
  for (std::size_t i = 0; i < manifest.tensors.size(); ++i) {
    layout.manifest.tensors[i].offset = manifest.tensors[i].offset;
  }
  EXPECT_EQ(layout.manifest, manifest);
}

// ---- at random, against copying each tensor by itself

class RandomLayouts : public ::testing::Test {
 protected:
  std::uint64_t below(std::uint64_t limit) { return random_() % limit; }

  Ranges tensors() {
    Ranges made;
    std::uint64_t at = below(600);
    const std::uint64_t unit = std::array<std::uint64_t, 4>{1, 2, 64, 256}[below(4)];
    for (std::uint64_t count = below(30); count > 0; --count) {
      const std::uint64_t size = below(6) == 0 ? 0 : (below(40) + 1) * unit;
      made.push_back({at, size});
      at += below(4) == 0 ? below(size + 1) : size;  // into the last one, or behind it
      if (below(5) == 0) at += below(300);
    }
    return made;
  }

  std::mt19937_64 random_{20'261'130};
};

TEST_F(RandomLayouts, GiveEachTensorItsBytes) {
  for (int round = 0; round < 500; ++round) {
    SCOPED_TRACE(round);
    const Manifest manifest = manifest_of(tensors());
    const std::uint64_t granularity = std::uint64_t{256} << below(6);
    const DeviceLayout layout = device_layout(manifest, granularity);
    std::uint64_t payload_size = 0;
    for (const TensorEntry& tensor : manifest.tensors)
      payload_size = std::max(payload_size, tensor.offset + tensor.size);
    std::vector<std::byte> payload(payload_size);
    for (std::byte& byte : payload) byte = static_cast<std::byte>(1 + below(255));

    std::vector<std::byte> by_tensor(layout.size), by_run(layout.size);
    const auto copy = [&](const CopyRun& run, std::vector<std::byte>& memory) {
      ASSERT_LE(run.target + run.size, memory.size());
      std::copy_n(payload.begin() + static_cast<std::ptrdiff_t>(run.source), run.size,
                  memory.begin() + static_cast<std::ptrdiff_t>(run.target));
    };
    for (std::size_t i = 0; i < manifest.tensors.size(); ++i) {
      const TensorEntry& from = manifest.tensors[i];
      copy({from.offset, layout.manifest.tensors[i].offset, from.size}, by_tensor);
    }
    for (const CopyRun& run : layout.runs) copy(run, by_run);
    ASSERT_TRUE(by_run == by_tensor);  // padding included: it stays zero

    ASSERT_EQ(layout.size % granularity, 0U);
    for (std::size_t i = 1; i < layout.runs.size(); ++i) {
      ASSERT_LE(layout.runs[i - 1].source + layout.runs[i - 1].size, layout.runs[i].source);
      ASSERT_LE(layout.runs[i - 1].target + layout.runs[i - 1].size, layout.runs[i].target);
    }
    std::uint64_t source_end = 0;  // of all tensors so far
    for (std::size_t i = 0; i < manifest.tensors.size(); ++i) {
      if (i == 0 || manifest.tensors[i].offset >= source_end) {
        ASSERT_EQ(layout.manifest.tensors[i].offset % kDeviceAlignment, 0U);
      }
      source_end = std::max(source_end, manifest.tensors[i].offset + manifest.tensors[i].size);
    }
    ASSERT_TRUE(std::ranges::is_sorted(layout.manifest.tensors, {}, &TensorEntry::offset));
  }
}

}  // namespace
}  // namespace modelbroker
