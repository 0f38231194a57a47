// A published block: adopted, mapped, drained, revived, verified, removed, and refused when damaged.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <random>

#include "tests/support/block_fixture.h"

namespace modelbroker {
namespace {

using testing::BlockRecipe;
using testing::first_difference;
using testing::kMiB;

class BlockTest : public testing::BlockFixture {
 protected:
  void expect_refused(const Block& block, ErrorCode code, const std::string& what) {
    const auto adopted = adopt(block);
    ASSERT_FALSE(adopted) << what;
    EXPECT_EQ(adopted.error().code, code) << what << ": " << adopted.error().message;
    EXPECT_NE(adopted.error().message.find(block.path()), std::string::npos) << adopted.error().message;
  }
};

// ---- adopt

TEST_F(BlockTest, IsAdoptedAsItWasPublished) {
  std::uint64_t generation = 1;
  for (const std::uint64_t size : {std::uint64_t{0}, std::uint64_t{10'000}, 5 * kMiB, 40 * kMiB}) {
    for (const std::uint64_t phase : {0ULL, 4095ULL}) {
      const Block block = make({.payload_size = size, .phase = phase, .generation = generation++});
      const auto again = adopt(block);
      ASSERT_TRUE(again) << again.error().message;
      EXPECT_EQ(again->header(), block.header());
      EXPECT_EQ(again->manifest(), block.manifest());
      EXPECT_EQ(again->id(), block.id());
      EXPECT_EQ(again->path(), block.path());
      EXPECT_EQ(again->bytes_held(), block.bytes_held());
      EXPECT_EQ(again->page_kind(), block.page_kind());
      EXPECT_TRUE(testing::verify(*os_, *again));
    }
  }
}

TEST_F(BlockTest, IsAdoptedWhileItDrains) {
  Block block = make();
  ASSERT_TRUE(block.drain(*os_));
  const auto again = adopt(block);
  ASSERT_TRUE(again) << again.error().message;
  EXPECT_TRUE(again->draining());
}

TEST_F(BlockTest, AdoptionChecksTheName) {
  const Block block = make({.generation = 3});
  const BlockName absent{os_->uid(), "test", "0123456789abcdef", 3, BlockState::kPublished};
  EXPECT_EQ(Block::adopt(*os_, *directory_, absent).error().code, ErrorCode::kNotFound);
  for (const bool digest : {true, false}) {
    BlockName name = block.name();
    if (digest) {
      name.digest16[0] = name.digest16[0] == 'a' ? 'b' : 'a';
    } else {
      name.generation = 4;
    }
    ASSERT_EQ(::rename(block.path().c_str(), directory_->path_of(name).c_str()), 0);
    EXPECT_EQ(Block::adopt(*os_, *directory_, name).error().code, ErrorCode::kDataLoss);
    ASSERT_EQ(::rename(directory_->path_of(name).c_str(), block.path().c_str()), 0);
  }
  EXPECT_TRUE(adopt(block));
}

TEST_F(BlockTest, AdoptionWantsAPlainReadOnlyFileOfOurs) {
  const Block block = make();
  const std::string path = block.path();
  for (const mode_t mode : {0600U, 0420U, 0402U, 0666U}) {
    ASSERT_EQ(::chmod(path.c_str(), mode), 0);
    expect_refused(block, ErrorCode::kFailedPrecondition, "mode");
  }
  ASSERT_EQ(::chmod(path.c_str(), 0400), 0);
  EXPECT_TRUE(adopt(block));

  std::filesystem::create_hard_link(path, folder_ / "second name");
  expect_refused(block, ErrorCode::kFailedPrecondition, "two links");
  std::filesystem::remove(folder_ / "second name");

  std::filesystem::rename(path, folder_ / "moved");
  std::filesystem::create_symlink(folder_ / "moved", path);
  expect_refused(block, ErrorCode::kInvalidArgument, "symbolic link");
  std::filesystem::remove(path);
  ASSERT_EQ(::mkfifo(path.c_str(), 0400), 0);
  expect_refused(block, ErrorCode::kFailedPrecondition, "fifo");  // and does not wait for a writer
  std::filesystem::remove(path);
  ASSERT_EQ(::mkdir(path.c_str(), 0500), 0);
  expect_refused(block, ErrorCode::kFailedPrecondition, "folder");
  std::filesystem::remove(path);
  expect_refused(block, ErrorCode::kNotFound, "gone");
}

TEST_F(BlockTest, AdoptionWantsOurOwnFile) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can make a file of another user";
  const Block block = make();
  ASSERT_EQ(::chown(block.path().c_str(), 12345, 12345), 0);
  expect_refused(block, ErrorCode::kFailedPrecondition, "another user's");
}

// ---- damage

TEST_F(BlockTest, EveryFlippedBitOfHeaderManifestAndTableIsRefused) {
  const Block block = make();
  const BlockLayout& layout = block.header().layout;
  std::vector<std::uint64_t> bits;
  for (std::uint64_t bit = 0; bit < 160U * 8; ++bit) bits.push_back(bit);
  for (const ByteRange& part : {layout.manifest, layout.chunk_table}) {
    for (std::uint64_t bit = part.offset * 8; bit < part.end() * 8; ++bit) bits.push_back(bit);
  }
  const Fd reader = block.open_for_reader(*os_).value();
  for (const std::uint64_t bit : bits) {
    flip(block.path(), bit);
    const auto adopted = adopt(block);
    ASSERT_FALSE(adopted) << "bit " << bit;
    ASSERT_TRUE(adopted.error().code == ErrorCode::kDataLoss ||
                (bit / 16 == 5 && adopted.error().code == ErrorCode::kUnimplemented))
        << "bit " << bit << ": " << adopted.error().message;
    const auto mapped = BlockView::map(*os_, reader, Access::kReadOnly);
    const auto manifest = mapped ? mapped->read_manifest() : tl::unexpected(mapped.error());
    ASSERT_FALSE(manifest) << "bit " << bit;
    ASSERT_EQ(manifest.error().code, adopted.error().code) << "bit " << bit;
    flip(block.path(), bit);
  }
  EXPECT_TRUE(adopt(block));
}

TEST_F(BlockTest, AFlippedBitOfThePayloadIsFoundByVerify) {
  const Block block = make({.payload_size = 40 * kMiB, .phase = 77});
  const BlockLayout& layout = block.header().layout;
  ASSERT_EQ(layout.chunk_count(), 3U);
  std::mt19937_64 random(5);
  for (std::uint32_t chunk = 0; chunk < 3; ++chunk) {
    const ByteRange range = layout.chunk(chunk);
    for (const std::uint64_t byte : {range.offset, range.end() - 1, range.offset + random() % range.size}) {
      flip(block.path(), byte * 8 + 3);
      const auto adopted = adopt(block);
      ASSERT_TRUE(adopted) << adopted.error().message;
      const auto verified = testing::verify(*os_, *adopted);
      ASSERT_FALSE(verified);
      EXPECT_EQ(verified.error().code, ErrorCode::kDataLoss);
      EXPECT_EQ(verified.error().details.at("chunk"), chunk);
      flip(block.path(), byte * 8 + 3);
    }
  }
  EXPECT_TRUE(testing::verify(*os_, block));
}

TEST_F(BlockTest, FilesOfAnotherSizeAreRefused) {
  const Block block = make();
  const Fd reader = block.open_for_reader(*os_).value();
  const std::uint64_t size = block.header().layout.block_size;
  const std::vector<std::byte> good = contents(block.path());
  for (const std::uint64_t other : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{4095}, std::uint64_t{4096},
                                    size - 4096, size - 1, size + 1, size + 4096, size + 2 * kMiB}) {
    resize(block.path(), other);
    expect_refused(block, ErrorCode::kDataLoss, std::to_string(other) + " bytes");
    EXPECT_EQ(BlockView::map(*os_, reader, Access::kPrivate).error().code, ErrorCode::kDataLoss) << other;
    ASSERT_EQ(::chmod(block.path().c_str(), 0600), 0);
    {
      std::ofstream file(block.path(), std::ios::binary);
      file.write(reinterpret_cast<const char*>(good.data()), static_cast<std::streamsize>(good.size()));
    }
    ASSERT_EQ(::chmod(block.path().c_str(), 0400), 0);
    ASSERT_TRUE(adopt(block));
  }
}

TEST_F(BlockTest, AFileOfNoiseIsRefused) {
  const Block block = make();
  const std::uint64_t size = block.header().layout.block_size;
  resize(block.path(), 0);
  resize(block.path(), size);
  expect_refused(block, ErrorCode::kDataLoss, "zeros");
}

// ---- views

TEST_F(BlockTest, IsMappedReadOnly) {
  const Block block = make({.payload_size = 5 * kMiB, .phase = 100});
  auto mapped = view(block);
  ASSERT_TRUE(mapped) << mapped.error().message;
  EXPECT_EQ(mapped->header(), block.header());
  EXPECT_EQ(mapped->read_manifest().value(), block.manifest());
  EXPECT_EQ(first_difference(mapped->payload()), 5 * kMiB);
  const auto address = reinterpret_cast<std::uintptr_t>(mapped->payload().data());
  EXPECT_EQ(address % kHugePage, 100U);
  // Not even by changing its mind.
  EXPECT_NE(::mprotect(reinterpret_cast<void*>(address / kPage * kPage), kPage, PROT_READ | PROT_WRITE), 0);
  EXPECT_EQ(errno, EACCES);
}

TEST_F(BlockTest, WhatIsWrittenToAPrivateViewStaysThere) {
  for (const std::uint64_t size : {std::uint64_t{10'000}, 5 * kMiB}) {
    const Block block = make({.payload_size = size, .generation = size});
    auto mine = view(block, Access::kPrivate).value();
    auto other = view(block, Access::kPrivate).value();
    const std::span payload(const_cast<std::byte*>(mine.payload().data()), mine.payload().size());
    ASSERT_EQ(payload.size(), size);
    EXPECT_EQ(first_difference(payload), size);
    payload[0] = ~payload[0];
    payload[size - 1] = ~payload[size - 1];
    EXPECT_EQ(first_difference(mine.payload()), 0U);
    EXPECT_EQ(first_difference(other.payload()), size);
    EXPECT_TRUE(testing::verify(*os_, block));
  }
}

TEST_F(BlockTest, AViewOutlivesItsBlock) {
  std::optional<BlockView> mapped;
  {
    Block block = make({.payload_size = 5 * kMiB});
    mapped = view(block).value();
    ASSERT_TRUE(block.remove(*os_));
  }
  EXPECT_TRUE(files().empty());
  EXPECT_EQ(first_difference(mapped->payload()), 5 * kMiB);
  const BlockView moved = std::move(*mapped);
  EXPECT_EQ(first_difference(moved.payload()), 5 * kMiB);
}

TEST_F(BlockTest, AnEmptyBlockCanBeMapped) {
  const Block block = make({.payload_size = 0});
  EXPECT_TRUE(block.chunk_hashes(*os_)->empty());
  EXPECT_TRUE(testing::verify(*os_, block));
  EXPECT_TRUE(view(block)->payload().empty());
  EXPECT_TRUE(view(block, Access::kPrivate)->payload().empty());
}

TEST_F(BlockTest, OtherDescriptorsAreNoBlocks) {
  std::array<int, 2> ends{};
  ASSERT_EQ(::pipe(ends.data()), 0);
  const Fd one(ends[0]);
  const Fd two(ends[1]);
  const Fd folder(::open(folder_.path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  EXPECT_EQ(BlockView::map(*os_, one, Access::kReadOnly).error().code, ErrorCode::kDataLoss);
  EXPECT_EQ(BlockView::map(*os_, folder, Access::kReadOnly).error().code, ErrorCode::kDataLoss);
  EXPECT_FALSE(BlockView::map(*os_, Fd(), Access::kReadOnly));
}

TEST_F(BlockTest, AMappingThatFailsLeavesNothing) {
  const Block block = make({.payload_size = 40 * kMiB});
  ASSERT_EQ(::chmod(block.path().c_str(), 0600), 0);
  const Fd write_only(::open(block.path().c_str(), O_WRONLY | O_CLOEXEC));
  const auto address_space = [&] { return std::stoull(os_->read_text("/proc/self/statm").value()) * 4096; };
  const std::uint64_t before = address_space();
  for (int i = 0; i < 50; ++i) {
    const auto mapped = BlockView::map(*os_, write_only, Access::kReadOnly);
    ASSERT_FALSE(mapped);
    ASSERT_EQ(mapped.error().code, ErrorCode::kPermissionDenied) << mapped.error().message;
  }
  EXPECT_LT(address_space(), before + 512 * kMiB);  // not 50 times 40 MiB
}

// ---- drain, revive, remove

TEST_F(BlockTest, DrainsAndRevivesByName) {
  Block block = make();
  const std::string id = block.id();
  const auto inode = os_->lstat(block.path())->st_ino;
  ASSERT_TRUE(block.drain(*os_));
  EXPECT_TRUE(block.draining());
  EXPECT_EQ(block.id(), id);
  EXPECT_EQ(files(), std::vector<std::string>{id + ".drain"});
  EXPECT_EQ(block.path(), folder_ / (id + ".drain"));
  EXPECT_TRUE(block.drain(*os_));  // already so
  EXPECT_TRUE(block.open_for_reader(*os_));
  ASSERT_TRUE(block.revive(*os_));
  EXPECT_FALSE(block.draining());
  EXPECT_EQ(files(), std::vector<std::string>{id});
  EXPECT_EQ(os_->lstat(block.path())->st_ino, inode);
  EXPECT_TRUE(block.revive(*os_));
  EXPECT_TRUE(testing::verify(*os_, block));
}

TEST_F(BlockTest, DrainingReplacesNothing) {
  Block block = make();
  std::ofstream(block.path() + ".drain") << "in the way";
  EXPECT_EQ(block.drain(*os_).error().code, ErrorCode::kAlreadyExists);
  EXPECT_FALSE(block.draining());
  EXPECT_EQ(block.path(), folder_ / block.id());
  EXPECT_TRUE(adopt(block));
}

TEST_F(BlockTest, ReadersGetADescriptionOfTheirOwn) {
  const Block block = make();
  const Fd one = block.open_for_reader(*os_).value();
  EXPECT_EQ(::fcntl(one.get(), F_GETFL) & O_ACCMODE, O_RDONLY);
  // A position of its own is what tells a description from a duplicate.
  ASSERT_EQ(::lseek(one.get(), 100, SEEK_SET), 100);
  EXPECT_EQ(::lseek(block.descriptor().get(), 0, SEEK_CUR), 0);
}

TEST_F(BlockTest, IsRemoved) {
  Block published = make({.generation = 1});
  Block draining = make({.generation = 2});
  ASSERT_TRUE(draining.drain(*os_));
  const std::string path = published.path();
  EXPECT_TRUE(published.remove(*os_));
  EXPECT_TRUE(draining.remove(*os_));
  EXPECT_TRUE(files().empty());

  Block gone = make({.generation = 3});
  ASSERT_TRUE(directory_->remove(*os_, gone.name()));
  EXPECT_TRUE(gone.is_missing(*os_));
  EXPECT_TRUE(gone.drain(*os_));  // nobody can open it by name
  EXPECT_TRUE(gone.draining());
  EXPECT_EQ(gone.bytes_held(), 0U);
  EXPECT_FALSE(gone.revive(*os_));
  EXPECT_EQ(gone.open_for_reader(*os_).error().code, ErrorCode::kNotFound);
  EXPECT_TRUE(gone.remove(*os_));  // that is what was wanted
  EXPECT_EQ(gone.bytes_held(), 0U);
}

TEST_F(BlockTest, TheFolderKnowsWhatABlockHolds) {
  const Block block = make({.payload_size = 5 * kMiB});
  const auto listing = directory_->list(*os_).value();
  ASSERT_EQ(listing.blocks.size(), 1U);
  EXPECT_EQ(listing.blocks[0].file_name(), block.id());
  EXPECT_EQ(directory_->remove(*os_, listing.blocks[0]).value(), block.bytes_held());
}

}  // namespace
}  // namespace modelbroker
