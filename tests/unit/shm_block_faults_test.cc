// Every system call of a block's life fails once, and memory runs out: a typed error or success, and
// nothing left behind.
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/statvfs.h>

#include <cerrno>
#include <cstring>

#include "tests/support/block_fixture.h"
#include "tests/support/child.h"
#include "tests/support/faulty_os.h"
#include "tests/support/sanitized.h"

namespace modelbroker {
namespace {

using testing::BlockRecipe;
using testing::Child;
using testing::FaultyOs;
using testing::kMiB;

std::size_t open_descriptors() {
  const std::filesystem::directory_iterator all("/proc/self/fd");
  return static_cast<std::size_t>(std::distance(begin(all), end(all)));
}

std::size_t mappings_of(const std::string& folder) {
  std::ifstream maps("/proc/self/maps");
  std::size_t count = 0;
  for (std::string line; std::getline(maps, line);) count += line.find(folder) != std::string::npos ? 1U : 0U;
  return count;
}

// ---- the k-th call fails

// Under a sanitizer every third one; it says nothing of a call that the next ones would not say.
constexpr std::uint64_t kStep = testing::kSanitized ? 3 : 1;

class EveryCallFails : public testing::BlockFixture, public ::testing::WithParamInterface<std::string> {
 protected:
  EveryCallFails() : BlockFixture(GetParam()), faulty_(*os_) {}

  [[nodiscard]] Result<void> live(std::uint64_t payload_size) {
    MODELBROKER_ASSIGN(const Block made, testing::make_block(faulty_, *directory_, {.payload_size = payload_size}));
    MODELBROKER_ASSIGN(const auto listing, directory_->list(faulty_));
    if (listing.blocks.size() != 1) return fail(ErrorCode::kInternal, "the block is not in its folder");
    MODELBROKER_ASSIGN(Block block, Block::adopt(faulty_, *directory_, made.name()));
    MODELBROKER_TRY(testing::verify(faulty_, block));
    MODELBROKER_ASSIGN(const Fd reader, block.open_for_reader(faulty_));
    MODELBROKER_TRY(BlockView::map(faulty_, reader, Access::kPrivate));
    MODELBROKER_TRY(block.drain(faulty_));
    if (os_->features().write_lease) MODELBROKER_TRY(block.unmapped_everywhere(faulty_));
    MODELBROKER_TRY(block.revive(faulty_));
    return block.remove(faulty_);
  }
  [[nodiscard]] bool temporary_left() const {
    for (const std::string& file : files()) {
      if (file.ends_with(".tmp")) return true;
    }
    return false;
  }
  void remove_all() const {
    for (const std::string& file : files()) std::filesystem::remove(folder_ / file);
  }

  FaultyOs faulty_;
};

// The errno tells the code, but a block that cannot be opened or looked at for the moment is not called damaged.
bool fits(const Error& error, int error_number, const std::string& call) {
  if (error.code == error_from_errno(error_number, "").code) return true;
  return error_number == EIO && error.code == ErrorCode::kUnavailable && (call == "open" || call == "fstat");
}

// EFAULT where pages are made is a full file system, and called that.
bool names(const Error& error, int error_number) {
  const auto has = [&](int number) { return error.message.find(std::strerror(number)) != std::string::npos; };
  const bool making_pages = error.message.starts_with("making pages");
  return has(error_number == EFAULT && making_pages ? ENOSPC : error_number);
}

TEST_P(EveryCallFails, WithATypedErrorAndNothingLeft) {
  for (const std::uint64_t payload_size : {std::uint64_t{10'000}, 5 * kMiB}) {
    std::vector<int> error_numbers{EFAULT, EIO};
    if (payload_size < kMiB) error_numbers.insert(error_numbers.end(), {ENOMEM, ENOSPC, EACCES, EMFILE});  // quick
    for (const int error_number : error_numbers) {
      std::uint64_t call = 1;
      for (bool done = false; !done; call += kStep) {
        SCOPED_TRACE("call " + std::to_string(call) + " fails with " + std::strerror(error_number));
        ASSERT_LT(call, 1000U);
        const std::size_t descriptors = open_descriptors();
        faulty_.fail_at(call, error_number);
        const auto lived = live(payload_size);
        done = !faulty_.failed_one();
        faulty_.stop_failing();
        if (!lived) {
          ASSERT_FALSE(done) << lived.error().message;
          ASSERT_TRUE(fits(lived.error(), error_number, faulty_.first_failed())) << lived.error().message;
          ASSERT_TRUE(names(lived.error(), error_number)) << lived.error().message;
        }
        ASSERT_FALSE(temporary_left());
        ASSERT_EQ(open_descriptors(), descriptors);
        ASSERT_EQ(mappings_of(folder_.path()), 0U);
        remove_all();
      }
      ASSERT_GT(call, 25U);  // the loop did go through a life's calls
    }
  }
}

TEST_P(EveryCallFails, FromThenOnAndTheNextStartClearsUp) {
  for (const std::uint64_t payload_size : {std::uint64_t{10'000}, 5 * kMiB}) {
    std::uint64_t call = 1;
    for (bool done = false; !done; call += kStep) {
      SCOPED_TRACE("from call " + std::to_string(call));
      ASSERT_LT(call, 1000U);
      const std::size_t descriptors = open_descriptors();
      faulty_.fail_at(call, EIO, true);
      const auto lived = live(payload_size);
      done = !faulty_.failed_one();
      faulty_.stop_failing();
      ASSERT_TRUE(lived || fits(lived.error(), EIO, faulty_.first_failed())) << lived.error().message;
      ASSERT_EQ(open_descriptors(), descriptors);
      ASSERT_EQ(mappings_of(folder_.path()), 0U);
      // Nothing could be unlinked any more: what lies there is whole or bears `.tmp`.
      const auto listing = directory_->list(*os_).value();
      ASSERT_TRUE(listing.foreign.empty());
      for (const BlockName& name : listing.blocks) {
        if (name.state != BlockState::kTemporary) {
          ASSERT_TRUE(Block::adopt(*os_, *directory_, name));
        }
        ASSERT_TRUE(directory_->remove(*os_, name));
      }
    }
  }
}

std::string name_of(const ::testing::TestParamInfo<std::string>& info) {
  return info.param.empty() ? "everything" : "without_" + info.param;
}

INSTANTIATE_TEST_SUITE_P(Features, EveryCallFails,
                         ::testing::Values("", "collapse", "populate_write", "rename_noreplace"), name_of);

class LockFails : public testing::BlockFixture {};

TEST_F(LockFails, EveryCallOfTheLock) {
  FaultyOs faulty(*os_);
  for (std::uint64_t call = 1;; ++call) {
    ASSERT_LT(call, 100U);
    const std::size_t descriptors = open_descriptors();
    faulty.fail_at(call, EIO);
    {
      const auto other = BlockDirectory::lock(faulty, folder_.path(), "other");
      if (!faulty.failed_one()) {
        EXPECT_TRUE(other);
        break;
      }
      ASSERT_FALSE(other) << call;
      EXPECT_EQ(other.error().code, ErrorCode::kDataLoss);
    }
    EXPECT_EQ(open_descriptors(), descriptors);
  }
}

// ---- memory is out

class NoMemory : public testing::BlockFixture {
 protected:
  // A tmpfs of `bytes` at `path`, that only the calling process sees. Says why not.
  [[nodiscard]] static std::string mount_small(const std::string& path, std::uint64_t bytes) {
    const std::string uid = std::to_string(::geteuid());
    const std::string gid = std::to_string(::getegid());
    if (::unshare(CLONE_NEWNS) != 0 && ::unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) {
      return std::string("unshare: ") + std::strerror(errno);
    }
    // An ordinary user stays itself in the new user namespace; root needed none, and cannot write these.
    std::ofstream("/proc/self/setgroups") << "deny";
    std::ofstream("/proc/self/uid_map") << uid << " " << uid << " 1";
    std::ofstream("/proc/self/gid_map") << gid << " " << gid << " 1";
    if (::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) {
      return std::string("mount --make-rprivate: ") + std::strerror(errno);
    }
    const std::string options = "size=" + std::to_string(bytes) + ",mode=0700";
    if (::mount("small", path.c_str(), "tmpfs", 0, options.c_str()) != 0) {
      return std::string("mount: ") + std::strerror(errno);
    }
    return "";
  }
  [[nodiscard]] static std::uint64_t free_bytes(const std::string& path) {
    struct statvfs found {};
    if (::statvfs(path.c_str(), &found) != 0) return 0;
    return found.f_bfree * found.f_frsize;
  }

  // What a block of 40 MiB does on a tmpfs of 16 MiB; "ok", or what was wrong.
  [[nodiscard]] static std::string fill_up(const std::string& path, const std::string& disabled) {
    const auto os = make_os({path, disabled});
    auto directory = BlockDirectory::lock(*os, path, "small");
    if (!directory) return directory.error().message;
    const std::uint64_t before = free_bytes(path);
    for (const bool all_at_once : {true, false}) {
      const auto full = all_at_once ? pages_until_full(*os, *directory) : make_too_much(*os, *directory);
      if (full) return "a block of 40 MiB went into 16 MiB";
      if (full.error().code != ErrorCode::kResourceExhausted) return "wrong error: " + full.error().message;
      if (full.error().message.find("free memory") == std::string::npos) return "no remedy: " + full.error().message;
      if (!directory->list(*os)->blocks.empty()) return "a block was left";
      if (free_bytes(path) != before) return "memory was left";
    }
    // And there is still room for one that fits.
    const auto fits = testing::make_block(*os, *directory, {.payload_size = 5 * kMiB});
    return fits ? "ok" : "what fits did not fit: " + fits.error().message;
  }

 private:
  [[nodiscard]] static Result<void> pages_until_full(Os& os, const BlockDirectory& directory) {
    const BlockRecipe recipe{.payload_size = 40 * kMiB};
    MODELBROKER_ASSIGN(BlockWriter writer, BlockWriter::create(os, directory, testing::plan_of(recipe, 100)));
    for (std::uint64_t at = 0; at < writer.layout().block_size; at += kHugePage) {
      MODELBROKER_TRY(writer.make_pages({at, kHugePage}));
      std::ranges::fill(writer.bytes().subspan(at, kHugePage), std::byte{1});  // cannot fault
    }
    return {};
  }
  [[nodiscard]] static Result<void> make_too_much(Os& os, const BlockDirectory& directory) {
    MODELBROKER_TRY(testing::make_block(os, directory, {.payload_size = 40 * kMiB}));
    return {};
  }
};

TEST_F(NoMemory, AFullTmpfsIsATypedErrorAndNoSigbus) {
  for (const std::string disabled : {"", "collapse", "populate_write"}) {
    Child child([&](const Child::Parent& parent) {
      const std::string refused = mount_small(folder_.path(), 16 * kMiB);
      parent.say(refused.empty() ? fill_up(folder_.path(), disabled) : "skip " + refused);
      return 0;
    });
    const std::string said = child.hear();
    const int status = child.wait();
    if (said.starts_with("skip ")) GTEST_SKIP() << "NO SMALL TMPFS CAN BE MOUNTED HERE: " << said.substr(5);
    EXPECT_EQ(said, "ok") << "without '" << disabled << "'";
    EXPECT_EQ(status, 0) << "without '" << disabled << "'";
  }
}

TEST_F(NoMemory, ThePagesThatFailSayWhatToDo) {
  FaultyOs faulty(*os_);
  const auto writer_of = [&] {
    return BlockWriter::create(faulty, *directory_, testing::plan_of({.payload_size = 10 * kMiB}, 100)).value();
  };
  for (const int error_number : {ENOMEM, ENOSPC, EFAULT}) {
    auto writer = writer_of();
    faulty.fail_at(1, error_number, true);
    const auto made = writer.make_pages({0, kHugePage});
    faulty.stop_failing();
    ASSERT_FALSE(made);
    EXPECT_EQ(made.error().code, ErrorCode::kResourceExhausted);
    EXPECT_NE(made.error().message.find("free memory"), std::string::npos) << made.error().message;
    // What failed can be asked for again.
    EXPECT_TRUE(writer.make_pages({0, kHugePage}));
  }
  EXPECT_TRUE(files().empty());
}

TEST_F(NoMemory, ACollapseThatFailsIsFourKiBPages) {
  if (!os_->features().collapse) GTEST_SKIP() << "this kernel has no MADV_COLLAPSE here";
  FaultyOs faulty(*os_);
  const BlockRecipe recipe{.payload_size = 10 * kMiB};
  const Manifest manifest = testing::sample_manifest(recipe);
  const auto encoded = manifest.encode();
  auto writer = BlockWriter::create(faulty, *directory_, testing::plan_of(recipe, encoded.size())).value();
  faulty.fail_at(2, EAGAIN);  // the first page is made, its collapse refused
  ASSERT_TRUE(writer.make_pages({4 * kMiB, 1}));
  faulty.stop_failing();
  EXPECT_EQ(writer.bytes_held().value(), kHugePage);
  const ChunkHashes hashes = testing::hash_chunks(writer);
  const auto block = std::move(writer).publish(manifest, encoded, hashes);
  ASSERT_TRUE(block) << block.error().message;
  EXPECT_EQ(block->page_kind(), PageKind::kSmall);  // not all of it is huge
  EXPECT_FALSE(block->header().huge_pages);
  EXPECT_EQ(adopt(*block)->page_kind(), PageKind::kSmall);
}

}  // namespace
}  // namespace modelbroker
