#include "shm/block.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>

#include "shm/chunk_hasher.h"
#include "shm/instruments.h"

namespace modelbroker {
namespace {

constexpr std::uint64_t kCheckStep = 256ULL << 10;
constexpr int kReadFlags = O_RDONLY | O_CLOEXEC | O_NOFOLLOW;

// O_NONBLOCK, so that a fifo in a block's place cannot hold us up. It also means EWOULDBLOCK while
// somebody asks with a write lease who has the block: then we wait the moment that this takes.
Result<Fd> open_block(Os& os, const std::string& path) {
  auto fd = os.open(path, kReadFlags | O_NONBLOCK, 0);
  if (!fd && fd.error().number == EWOULDBLOCK) fd = os.open(path, kReadFlags, 0);
  if (!fd) return fail_errno(fd.error().number, "opening block '" + path + "'");
  return std::move(*fd);
}

Result<std::vector<std::byte>> read_range(Os& os, int fd, const ByteRange& range, const std::string& path) {
  std::vector<std::byte> bytes(range.size);
  std::size_t have = 0;
  while (have < bytes.size()) {
    const auto got = os.pread(fd, std::span(bytes).subspan(have), range.offset + have);
    if (!got) return fail_errno(got.error().number, "reading block '" + path + "'");
    if (*got == 0) return fail(ErrorCode::kDataLoss, "block '" + path + "' is shorter than its header says");
    have += *got;
  }
  return bytes;
}

Error in_block(const std::string& path, Error error) {
  error.message = "block '" + path + "': " + error.message;
  return error;
}

Result<BlockHeader> read_header(Os& os, int fd, std::uint64_t file_size, const std::string& path) {
  if (file_size < kPage) return fail(ErrorCode::kDataLoss, "block '" + path + "' is shorter than a header");
  MODELBROKER_ASSIGN(const std::vector<std::byte> page, read_range(os, fd, {0, kPage}, path));
  auto header = BlockHeader::decode(page, file_size);
  if (!header) return tl::unexpected(in_block(path, std::move(header).error()));
  return header;
}

Result<std::shared_ptr<const Manifest>> read_manifest(Os& os, int fd, const BlockHeader& header,
                                                      const std::string& path) {
  MODELBROKER_ASSIGN(const std::vector<std::byte> encoded, read_range(os, fd, header.layout.manifest, path));
  if (hash64(encoded) != header.manifest_hash) {
    return fail(ErrorCode::kDataLoss, "block '" + path + "': the manifest is damaged");
  }
  auto manifest = Manifest::decode(encoded, header.layout.payload.size);
  if (!manifest) return tl::unexpected(in_block(path, std::move(manifest).error()));
  return std::make_shared<const Manifest>(std::move(*manifest));
}

// A file that nobody else could have written or swapped.
Result<struct stat> check_file(Os& os, const Fd& fd, const std::string& path, std::uint32_t uid) {
  const auto found = os.fstat(fd.get());
  if (!found) return fail_errno(found.error().number, "looking at block '" + path + "'");
  if (!S_ISREG(found->st_mode) || found->st_uid != uid || found->st_nlink != 1 || (found->st_mode & 0222U) != 0) {
    return fail(ErrorCode::kFailedPrecondition,
                "block '" + path + "' is not a read-only regular file of ours with one link");
  }
  return *found;
}

Result<ChunkHashes> read_chunk_table(Os& os, int fd, const BlockHeader& header, const std::string& path) {
  MODELBROKER_ASSIGN(const auto bytes, read_range(os, fd, header.layout.chunk_table, path));
  ChunkHashes hashes(header.layout.chunk_count());
  std::copy(bytes.begin(), bytes.end(), std::as_writable_bytes(std::span(hashes)).begin());
  if (digest_of(header.layout.payload.size, hashes) != header.digest) {
    return fail(ErrorCode::kDataLoss, "block '" + path + "': the chunk table does not agree with the digest");
  }
  return hashes;
}

// For checks: without the path, which may change under them.
tl::unexpected<Error> damage(const std::string& what, std::uint64_t offset) {
  return fail(ErrorCode::kDataLoss, what, {{"offset", offset}});
}

tl::unexpected<Error> freed() { return fail(ErrorCode::kCancelled, "the block was freed meanwhile"); }

Result<void> read_again(Os& os, int fd, std::span<std::byte> into, std::uint64_t offset) {
  while (!into.empty()) {
    const auto got = os.pread(fd, into, offset);
    if (!got) {
      Error error = error_from_errno(got.error().number, "reading it again");
      if (got.error().number == EIO) {  // a broken memory chip, or swap
        error.code = ErrorCode::kDataLoss;
        error.details["offset"] = offset;
      }
      return tl::unexpected(std::move(error));
    }
    if (*got == 0) return damage("it became shorter", offset);
    into = into.subspan(*got);
    offset += *got;
  }
  return {};
}

std::uint64_t held(const struct stat& found) { return static_cast<std::uint64_t>(found.st_blocks) * 512; }

}  // namespace

std::string_view to_string(PageKind kind) noexcept { return kind == PageKind::kHuge ? "2MiB" : "4KiB"; }

std::uint64_t BlockGauge::bytes() const {
  const std::lock_guard lock(mutex_);
  if (fd_ >= 0) {
    if (const auto found = os_->fstat(fd_)) known_ = held(*found);
  }
  return known_;
}

bool BlockGauge::has_file() const {
  const std::lock_guard lock(mutex_);
  return has_file_;
}

void BlockGauge::follow(Os& os, int fd) {
  const std::lock_guard lock(mutex_);
  has_file_ = true;
  os_ = &os;
  fd_ = fd;
}

void BlockGauge::settle(std::uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  fd_ = -1;
  known_ = bytes;
}

SysResult<void> BlockGauge::remove(Os& os, const std::string& path, Fd file) {
  const std::lock_guard lock(mutex_);
  auto removed = os.unlink(path);
  if (!removed && removed.error().number == ENOENT) removed = {};  // somebody else did it
  if (removed) {
    has_file_ = false;
    known_ = 0;
    fd_ = -1;
    kept_.reset();
  } else if (file) {
    kept_ = std::move(file);
    os_ = &os;
    fd_ = kept_.get();
  }
  return removed;
}

namespace {

// A file that could not be opened or looked at may well be whole: no word of damage, whatever the reason.
Error try_again(Error error) {
  if (error.code == ErrorCode::kDataLoss) error.code = ErrorCode::kUnavailable;
  return error;
}

}  // namespace

Result<Block> Block::adopt(Os& os, const BlockDirectory& where, const BlockName& name) {
  Block block;
  block.name_ = name;
  block.directory_ = where.path();
  block.path_ = where.path_of(name);
  auto opened = open_block(os, block.path_);
  if (!opened) return tl::unexpected(try_again(std::move(opened).error()));
  block.fd_ = std::move(*opened);
  const auto found = check_file(os, block.fd_, block.path_, where.uid());
  if (!found) return tl::unexpected(try_again(found.error()));
  block.gauge_->settle(held(*found));
  if ((found->st_mode & S_IRGRP) != 0) block.group_ = found->st_gid;
  const auto size = static_cast<std::uint64_t>(found->st_size);
  MODELBROKER_ASSIGN(block.header_, read_header(os, block.fd_.get(), size, block.path_));
  if (block.header_.generation != name.generation || to_hex(block.header_.digest).substr(0, 16) != name.digest16) {
    return fail(ErrorCode::kDataLoss, "block '" + block.path_ + "': its name does not agree with its header");
  }
  block.page_kind_ = block.header_.huge_pages ? PageKind::kHuge : PageKind::kSmall;
  MODELBROKER_TRY(read_chunk_table(os, block.fd_.get(), block.header_, block.path_));
  MODELBROKER_ASSIGN(block.manifest_, read_manifest(os, block.fd_.get(), block.header_, block.path_));
  return block;
}

Result<void> Block::give_to_group(Os& os, gid_t group) {
  auto given = os.fchgrp(fd_.get(), group);
  if (given) given = os.fchmod(fd_.get(), 0440);
  if (!given) {
    return fail_errno(given.error().number, "giving block '" + path_ + "' to group " + std::to_string(group));
  }
  group_ = group;
  return {};
}

Result<void> Block::take_from_group(Os& os) {
  if (auto taken = os.fchmod(fd_.get(), 0400); !taken) {
    return fail_errno(taken.error().number, "taking block '" + path_ + "' from its group");
  }
  group_.reset();
  return {};
}

Result<Fd> Block::open_for_reader(Os& os) const {
  // A description of its own: a duplicate of ours would hide from the write-lease test.
  return open_block(os, path_);
}

Result<void> Block::rename(Os& os, BlockState state) {
  if (name_.state == state) return {};
  BlockName name = name_;
  name.state = state;
  const std::string path = directory_ + "/" + name.file_name();
  if (auto renamed = os.rename_noreplace(path_, path); !renamed) {
    return fail_errno(renamed.error().number, "renaming block '" + path_ + "' to '" + path + "'");
  }
  name_ = std::move(name);
  path_ = path;
  return {};
}

void Block::claim(Os& os) const { (void)os.lock_exclusive(fd_.get()); }

bool Block::is_missing(Os& os) const {
  const auto named = os.lstat(path_);
  if (!named) return named.error().number == ENOENT;
  const auto ours = os.fstat(fd_.get());
  return ours && (ours->st_ino != named->st_ino || ours->st_dev != named->st_dev);
}

Result<void> Block::drain(Os& os) {
  crash_point("drain.before_rename");
  if (auto renamed = rename(os, BlockState::kDraining); !renamed) {
    if (!is_missing(os)) return renamed;
    gauge_->settle(0);
    name_.state = BlockState::kDraining;
    path_ = directory_ + "/" + name_.file_name();
  }
  crash_point("drain.after_rename");
  return {};
}

Result<void> Block::revive(Os& os) {
  crash_point("revive.before_rename");
  MODELBROKER_TRY(rename(os, BlockState::kPublished));
  crash_point("revive.after_rename");
  return {};
}

Result<bool> Block::unmapped_everywhere(Os& os) const {
  const auto alone = os.nobody_else_has_it(fd_.get());
  if (!alone) return fail_errno(alone.error().number, "asking the kernel who has block '" + path_ + "'");
  return *alone;
}

Result<void> Block::remove(Os& os) {
  crash_point("drain.before_unlink");
  if (auto removed = gauge_->remove(os, path_); !removed) {
    return fail_errno(removed.error().number, "removing block '" + path_ + "'");
  }
  crash_point("drain.after_unlink");
  checking_->is_over = true;  // who checks chunk after chunk would else have the lock again before us, for ever
  const std::lock_guard lock(checking_->mutex);
  fd_.reset();
  return {};
}

Result<ChunkHashes> Block::chunk_hashes(Os& os) const { return read_chunk_table(os, fd_.get(), header_, path_); }

Result<ChunkHashes> Block::check_contents(Os& os) const {
  const std::lock_guard lock(checking_->mutex);
  if (checking_->is_over) return freed();
  std::vector<std::byte> page(kPage);
  MODELBROKER_TRY(read_again(os, fd_.get(), page, 0));
  if (const auto header = BlockHeader::decode(page, header_.layout.block_size); !header || *header != header_) {
    return damage("the header is damaged", 0);
  }
  const ByteRange& manifest = header_.layout.manifest;
  std::vector<std::byte> encoded(manifest.size);
  MODELBROKER_TRY(read_again(os, fd_.get(), encoded, manifest.offset));
  if (hash64(encoded) != header_.manifest_hash) return damage("the manifest is damaged", manifest.offset);
  ChunkHashes hashes(header_.layout.chunk_count());
  MODELBROKER_TRY(
      read_again(os, fd_.get(), std::as_writable_bytes(std::span(hashes)), header_.layout.chunk_table.offset));
  if (digest_of(header_.layout.payload.size, hashes) != header_.digest) {
    return damage("the chunk table is damaged", header_.layout.chunk_table.offset);
  }
  return hashes;
}

Result<void> Block::check_chunk(Os& os, std::uint32_t index, std::uint64_t hash, const std::atomic<bool>& stop) const {
  const std::lock_guard lock(checking_->mutex);
  const ByteRange chunk = header_.layout.chunk(index);
  std::vector<std::byte> buffer(std::min(chunk.size, kCheckStep));
  ChunkHasher hasher;
  for (std::uint64_t at = chunk.offset; at < chunk.end();) {
    if (checking_->is_over) return freed();
    if (stop) return fail(ErrorCode::kCancelled, "the check was stopped");
    const auto piece = std::span(buffer).first(std::min<std::uint64_t>(buffer.size(), chunk.end() - at));
    if (auto read = read_again(os, fd_.get(), piece, at); !read) {
      Error error = std::move(read).error();
      if (error.code == ErrorCode::kDataLoss) error.details["chunk"] = index;
      return tl::unexpected(std::move(error));
    }
    hasher.update(piece);
    at += piece.size();
  }
  if (hasher.digest() == hash) return {};
  auto damaged = damage("chunk " + std::to_string(index) + " is damaged", chunk.offset);
  damaged.value().details["chunk"] = index;
  return damaged;
}

}  // namespace modelbroker
