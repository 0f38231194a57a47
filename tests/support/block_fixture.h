// BlockFixture: a locked folder on a tmpfs and an Os with every feature that this kernel has.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "shm/block.h"
#include "tests/support/block_maker.h"
#include "tests/support/temp_directory.h"
#include "tests/support/watchdog.h"

namespace modelbroker::testing {

inline constexpr std::uint64_t kMiB = 1ULL << 20;

class BlockFixture : public ::testing::Test {
 protected:
  explicit BlockFixture(const std::string& disabled = "") : os_(make_os({folder_.path(), disabled})) {}

  void SetUp() override {
    auto directory = BlockDirectory::lock(*os_, folder_.path(), "test");
    ASSERT_TRUE(directory) << directory.error().message;
    directory_ = std::make_unique<BlockDirectory>(std::move(*directory));
  }

  [[nodiscard]] Block make(const BlockRecipe& recipe = {}) {
    auto block = make_block(*os_, *directory_, recipe);
    if (!block) throw std::runtime_error(block.error().message);
    return std::move(*block);
  }
  [[nodiscard]] Result<Block> adopt(const Block& block) { return Block::adopt(*os_, *directory_, block.name()); }
  [[nodiscard]] Result<BlockView> view(const Block& block, Access access = Access::kReadOnly) {
    MODELBROKER_ASSIGN(const Fd fd, block.open_for_reader(*os_));
    return BlockView::map(*os_, fd, access);
  }

  // Files in the folder but for the lock.
  [[nodiscard]] std::vector<std::string> files() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(folder_.path())) {
      std::string name = entry.path().filename();
      if (!name.ends_with(".lock")) names.push_back(std::move(name));
    }
    return names;
  }
  [[nodiscard]] static std::vector<std::byte> contents(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    const auto* const begin = reinterpret_cast<const std::byte*>(text.data());
    return {begin, begin + text.size()};
  }
  // Does what nobody may: changes a published block.
  static void flip(const std::string& path, std::uint64_t bit) {
    writable(path, [bit](int fd) {
      const auto at = static_cast<off_t>(bit / 8);
      std::uint8_t byte = 0;
      ASSERT_EQ(::pread(fd, &byte, 1, at), 1);
      byte = static_cast<std::uint8_t>(byte ^ (1U << (bit % 8)));
      ASSERT_EQ(::pwrite(fd, &byte, 1, at), 1);
    });
  }
  static void resize(const std::string& path, std::uint64_t size) {
    writable(path, [size](int fd) { ASSERT_EQ(::ftruncate(fd, static_cast<off_t>(size)), 0); });
  }

  Watchdog watchdog_;
  TempDirectory folder_;
  const std::unique_ptr<Os> os_;
  std::unique_ptr<BlockDirectory> directory_;

 private:
  template <class Change>
  static void writable(const std::string& path, Change change) {
    ASSERT_EQ(::chmod(path.c_str(), 0600), 0);
    const Fd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
    ASSERT_TRUE(fd);
    change(fd.get());
    ASSERT_EQ(::chmod(path.c_str(), 0400), 0);
  }
};

}  // namespace modelbroker::testing
