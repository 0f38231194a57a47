// Blocks that a broker of a later version left: this one does not read them, and does not take them for damage.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <functional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "cpp_client/broker.h"
#include "shm/block.h"
#include "tests/support/block_maker.h"
#include "tests/support/in_process_broker.h"
#include "tests/support/watchdog.h"

namespace modelbroker {
namespace {

constexpr off_t kMinReaderVersion = 10;  // of the header: docs/block-format.md

std::vector<std::byte> encoded(const Manifest& manifest) { return manifest.encode(); }

std::vector<std::byte> of_version_2(const Manifest& manifest) {
  std::vector<std::byte> bytes = manifest.encode();
  constexpr std::string_view kKey = "version";
  const auto word = std::as_bytes(std::span(kKey));
  // std::search, for clang 14 cannot compile libstdc++'s ranges::subrange.
  const auto key = std::search(bytes.begin(), bytes.end(), word.begin(), word.end());
  *(key + static_cast<std::ptrdiff_t>(word.size())) = std::byte{2};
  return bytes;
}

void nothing(const std::string& /*path*/) {}

void need_a_later_reader(const std::string& path) {
  ASSERT_EQ(::chmod(path.c_str(), 0600), 0);
  const Fd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  constexpr std::array<char, 2> kVersion{2, 0};
  ASSERT_EQ(::pwrite(fd.get(), kVersion.data(), kVersion.size(), kMinReaderVersion), 2);
  ASSERT_EQ(::chmod(path.c_str(), 0400), 0);
}

void damage(const std::string& path) {
  ASSERT_EQ(::chmod(path.c_str(), 0600), 0);
  const Fd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  ASSERT_EQ(::pwrite(fd.get(), "x", 1, 0), 1);
  ASSERT_EQ(::chmod(path.c_str(), 0400), 0);
}

struct Case {
  const char* what;
  const char* dtype;
  std::function<std::vector<std::byte>(const Manifest&)> encode;
  std::function<void(const std::string&)> change;
  bool is_adopted;
  bool stays;  // while the broker runs
};

const std::vector<Case>& cases() {
  static const std::vector<Case> kCases{
      {"of this version", "U8", encoded, nothing, true, true},
      {"a dtype of a later version", "Q4_0", encoded, nothing, true, true},
      {"a manifest of a later version", "U8", of_version_2, nothing, false, true},
      {"a block of a later version", "U8", encoded, need_a_later_reader, false, true},
      {"damage", "U8", encoded, damage, false, false},
  };
  return kCases;
}

// As an earlier broker would; gives the block's path.
std::string leave_block(Os& os, const std::string& folder, const Case& each) {
  const auto where = BlockDirectory::lock(os, folder, "default");
  if (!where) throw std::runtime_error(where.error().message);
  const testing::BlockRecipe recipe{.name = "left"};
  Manifest manifest = testing::sample_manifest(recipe);
  manifest.tensors.front().dtype = each.dtype;
  const std::vector<std::byte> bytes = each.encode(manifest);
  auto writer = BlockWriter::create(os, *where, testing::plan_of(recipe, bytes.size()));
  if (!writer) throw std::runtime_error(writer.error().message);
  if (auto made = writer->make_pages(writer->layout().payload); !made) throw std::runtime_error(made.error().message);
  std::ranges::fill(writer->payload(), std::byte{'d'});
  const ChunkHashes hashes = testing::hash_chunks(*writer);
  auto block = std::move(*writer).publish(manifest, bytes, hashes);
  if (!block) throw std::runtime_error(block.error().message);
  each.change(block->path());
  return block->path();
}

TEST(LaterBlocks, AreLeftAloneAndDamageIsNot) {
  for (const Case& each : cases()) {
    SCOPED_TRACE(each.what);
    const testing::Watchdog watchdog;
    std::string path;
    testing::InProcessBroker server([&](Os& os, const std::string& folder) { path = leave_block(os, folder, each); });
    EXPECT_EQ(std::filesystem::exists(path), each.stays);
    {
      auto broker = Broker::connect({.endpoint = server.endpoint()});
      ASSERT_TRUE(broker) << broker.error().message;
      const auto models = broker->list();
      ASSERT_TRUE(models) << models.error().message;
      ASSERT_EQ(models->size(), each.is_adopted ? 1U : 0U);
      const auto status = broker->status();
      ASSERT_TRUE(status) << status.error().message;
      const bool is_foreign = each.stays && !each.is_adopted;
      EXPECT_EQ(status->tiers.at("ram").foreign_blocks, is_foreign ? 1U : 0U);
      EXPECT_EQ(status->tiers.at("ram").foreign > 0, is_foreign);
      if (each.is_adopted) {
        const auto weights = broker->attach("left");
        ASSERT_TRUE(weights) << weights.error().message;
        const auto tensor = weights->tensor("weight");
        ASSERT_TRUE(tensor) << tensor.error().message;
        EXPECT_EQ(tensor->dtype, each.dtype);
        EXPECT_EQ(tensor->bytes.size(), 10'000U);
        EXPECT_TRUE(std::ranges::all_of(tensor->bytes, [](std::byte byte) { return byte == std::byte{'d'}; }));
      }
    }
    server.stop();
    EXPECT_FALSE(std::filesystem::exists(path));  // a clean stop frees all memory of the instance, as configured
  }
}

}  // namespace
}  // namespace modelbroker
