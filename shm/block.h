// A block: an immutable run of bytes in named shared memory.
//
// BlockDirectory  the folder that holds an instance's blocks, and its lock.
// BlockGauge      what a block's file holds at this moment, for the books.
// BlockWriter     fills a new block; nobody else can see it until publish().
// Block           a published block as its owner holds it: name, header, one read-only descriptor.
// BlockView       a block as a reader maps it; keeps the bytes alive, whoever dies.
//
// Threads: a BlockWriter's make_pages() and payload bytes may be used from several threads on
// disjoint ranges, and a Block's check_...() while another thread does what it likes with it; everything else belongs
// to one thread at a time. Failure: every function that can
// fail returns Result and leaves the object as it was; the && ones clean up what they held.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "shm/block_format.h"
#include "shm/error.h"
#include "shm/fd.h"
#include "shm/lock_file.h"
#include "shm/manifest.h"
#include "shm/os.h"

namespace modelbroker {

enum class PageKind : std::uint8_t { kSmall, kHuge };              // 4 KiB; 2 MiB (all of the payload)
[[nodiscard]] std::string_view to_string(PageKind kind) noexcept;  // "4KiB", "2MiB"

class BlockDirectory {
 public:
  // Opens `path` (a tmpfs, unless `any_file_system`) and takes the instance's lock. failed_precondition
  // names the holder's remedy if another broker has it; the lock lasts as long as this object. A lock that is new
  // proves nothing, for an old one may have been removed: then nobody may hold a block either.
  [[nodiscard]] static Result<BlockDirectory> lock(Os& os, std::string path, std::string instance,
                                                   bool any_file_system = false);
  [[nodiscard]] const std::string& path() const noexcept { return path_; }
  [[nodiscard]] std::uint32_t uid() const noexcept { return uid_; }
  [[nodiscard]] std::string path_of(const BlockName& name) const;
  // What a block of this generation is called while it is made.
  [[nodiscard]] BlockName temporary(std::uint64_t generation) const;
  // The lock: see LockFile.
  [[nodiscard]] const LockFile& lock_file() const noexcept { return *lock_; }
  [[nodiscard]] LockFile& lock_file() noexcept { return *lock_; }
  // Names of our uid and instance, in any state, that are regular files of ours without a link elsewhere.
  // `doubles`: further names of those blocks: a rename that a death left half done, or a copy.
  // `foreign`: file names that look like ours and are not safe to touch (reported, left alone).
  struct Listing {
    std::vector<BlockName> blocks;
    std::vector<BlockName> doubles;
    std::vector<std::string> foreign;
  };
  [[nodiscard]] Result<Listing> list(Os& os) const;
  // Unlinks a double: only after it every block may be touched.
  [[nodiscard]] Result<void> remove_double(Os& os, const BlockName& name) const;
  // Unlinks a block by name (checked as in list()). Returns the bytes it held (st_blocks).
  [[nodiscard]] Result<std::uint64_t> remove(Os& os, const BlockName& name) const;

 private:
  BlockDirectory() = default;
  [[nodiscard]] Result<void> check_nobody_holds_a_block(Os& os) const;
  std::string path_;
  std::string instance_;
  std::uint32_t uid_ = 0;
  std::optional<LockFile> lock_;
};

// What a block's file holds at this moment, as the kernel counts it (st_blocks), from its first page until its name
// is gone. Whoever makes or frees the file and whoever counts share one. Threads: any.
class BlockGauge {
 public:
  BlockGauge() = default;
  BlockGauge(const BlockGauge&) = delete;
  BlockGauge& operator=(const BlockGauge&) = delete;

  [[nodiscard]] std::uint64_t bytes() const;
  // A file was made, and its name is still there, even if it is empty.
  [[nodiscard]] bool has_file() const;
  // Unlinks, so that nobody sees a file that is not counted, or counts one that is not there. If that fails, `file`
  // is kept to count it by.
  [[nodiscard]] SysResult<void> remove(Os& os, const std::string& path, Fd file = Fd());

 private:
  friend class Block;
  friend class BlockWriter;
  void follow(Os& os, int fd);       // the file grows: ask each time
  void settle(std::uint64_t bytes);  // it does not any more, and its descriptor goes

  mutable std::mutex mutex_;
  Os* os_ = nullptr;  // guarded by mutex_, as all that follow
  int fd_ = -1;       // the writer's, while it grows
  Fd kept_;           // of a file that could not be removed; then fd_ is its number
  bool has_file_ = false;
  mutable std::uint64_t known_ = 0;
};

struct BlockPlan {
  std::uint64_t payload_size = 0;
  std::uint64_t phase = 0;          // payload's offset in its source, modulo 4096
  std::uint64_t manifest_size = 0;  // bytes of the encoded manifest that publish() will get
  std::uint64_t generation = 0;
  BootId broker_boot_id{};
  bool huge_pages = true;               // try; false: 4 KiB pages
  std::optional<gid_t> group{};         // who may read it besides its owner
  std::shared_ptr<BlockGauge> gauge{};  // shows what is made meanwhile; none: the block makes one
};

class Block {
 public:
  // Opens a block by its file name (published or draining) and checks all but the payload's bytes.
  [[nodiscard]] static Result<Block> adopt(Os& os, const BlockDirectory& where, const BlockName& name);

  Block(Block&&) noexcept = default;
  Block& operator=(Block&&) noexcept = default;
  ~Block() = default;

  [[nodiscard]] const BlockName& name() const noexcept { return name_; }
  [[nodiscard]] std::string id() const { return name_.id(); }
  [[nodiscard]] const std::string& path() const noexcept { return path_; }
  [[nodiscard]] const BlockHeader& header() const noexcept { return header_; }
  [[nodiscard]] const Manifest& manifest() const noexcept { return *manifest_; }
  [[nodiscard]] bool draining() const noexcept { return name_.state == BlockState::kDraining; }
  // st_blocks of the file, as asked at publish or adopt: what it really holds, in bytes; 0 once it is removed.
  [[nodiscard]] std::uint64_t bytes_held() const { return gauge_->bytes(); }
  [[nodiscard]] PageKind page_kind() const noexcept { return page_kind_; }
  [[nodiscard]] const Fd& descriptor() const noexcept { return fd_; }
  // Who may open the file besides its owner; nothing: nobody.
  [[nodiscard]] std::optional<gid_t> group() const noexcept { return group_; }
  [[nodiscard]] Result<void> give_to_group(Os& os, gid_t group);
  [[nodiscard]] Result<void> take_from_group(Os& os);  // who has it open keeps it

  [[nodiscard]] Result<Fd> open_for_reader(Os& os) const;  // a new O_RDONLY description, safe to send
  [[nodiscard]] Result<void> drain(Os& os);                // no new opens by name; if it is missing, none is needed
  [[nodiscard]] Result<void> revive(Os& os);               // back to its name, nothing read
  // Tells whoever finds the folder's lock removed that somebody owns this block: see BlockDirectory::lock().
  void claim(Os& os) const;
  // Its file was removed, renamed or replaced by somebody else: only who has it open has it still.
  [[nodiscard]] bool is_missing(Os& os) const;
  // The kernel's word (F_SETLEASE); unimplemented where it has none.
  [[nodiscard]] Result<bool> unmapped_everywhere(Os& os) const;
  // Unlinks it and lets go of it, which frees its pages: a job's work. Any thread, as long as nobody renames it.
  [[nodiscard]] Result<void> remove(Os& os);
  // The chunk table, checked against the digest.
  [[nodiscard]] Result<ChunkHashes> chunk_hashes(Os& os) const;
  // Reads again, by our one description, so that the kernel sees no other holder; makes no page. For any thread, also
  // while the block is renamed or removed: then cancelled. data_loss says what is damaged (details: offset, chunk).
  // Header, manifest and chunk table; gives the table.
  [[nodiscard]] Result<ChunkHashes> check_contents(Os& os) const;
  // One chunk of the payload; cancelled soon after `stop` is set.
  [[nodiscard]] Result<void> check_chunk(Os& os, std::uint32_t index, std::uint64_t hash,
                                         const std::atomic<bool>& stop) const;

 private:
  friend class BlockWriter;
  Block() = default;
  [[nodiscard]] Result<void> rename(Os& os, BlockState state);
  BlockName name_;
  std::string directory_;
  std::string path_;
  BlockHeader header_;
  std::shared_ptr<const Manifest> manifest_;
  std::shared_ptr<BlockGauge> gauge_ = std::make_shared<BlockGauge>();
  PageKind page_kind_ = PageKind::kSmall;
  std::optional<gid_t> group_;
  struct Checking {
    std::mutex mutex;                   // held while fd_ is read by a check, and when it is let go
    std::atomic<bool> is_over = false;  // the block was freed: no check begins, and one that runs ends
  };
  std::unique_ptr<Checking> checking_ = std::make_unique<Checking>();
  Fd fd_;
};

class BlockWriter {
 public:
  // Makes the `.tmp` file at its full size and maps it. No page exists yet but the first.
  [[nodiscard]] static Result<BlockWriter> create(Os& os, const BlockDirectory& where, const BlockPlan& plan);

  BlockWriter(BlockWriter&&) noexcept;
  BlockWriter& operator=(BlockWriter&&) noexcept;
  ~BlockWriter();  // an unpublished block is unlinked and unmapped

  [[nodiscard]] const BlockLayout& layout() const noexcept;
  // The whole block as mapped; addresses stay until publish().
  [[nodiscard]] std::span<std::byte> bytes() noexcept;
  [[nodiscard]] std::span<std::byte> payload() noexcept;
  // Makes every page that `range` of the block's bytes touches (whole 2 MiB steps where not compact).
  // After it, writing there cannot fault. resource_exhausted where memory is out, never SIGBUS.
  [[nodiscard]] Result<void> make_pages(ByteRange range);
  // Bytes that really exist by now (st_blocks).
  [[nodiscard]] Result<std::uint64_t> bytes_held() const;
  // Writes manifest, chunk table and header, makes what pages are missing, unmaps in small steps,
  // renames to the final name, reopens read-only. `manifest_bytes` as planned.
  [[nodiscard]] Result<Block> publish(const Manifest& manifest, std::span<const std::byte> manifest_bytes,
                                      const ChunkHashes& hashes) &&;

 private:
  struct State;
  explicit BlockWriter(std::unique_ptr<State> state) noexcept;
  std::unique_ptr<State> state_;
};

enum class Access : std::uint8_t { kReadOnly, kPrivate };  // kPrivate: copy-on-write, MAP_NORESERVE

class BlockView {
 public:
  // Maps a block from a read-only descriptor at a 2 MiB-aligned address and checks its header.
  // The descriptor is not kept: the mapping holds the file.
  [[nodiscard]] static Result<BlockView> map(Os& os, const Fd& fd, Access access);

  BlockView(BlockView&&) noexcept;
  BlockView& operator=(BlockView&&) noexcept;
  ~BlockView();

  [[nodiscard]] const BlockHeader& header() const noexcept;
  // Checks and decodes it: work that grows with the number of tensors, so only on demand, and not kept.
  [[nodiscard]] Result<Manifest> read_manifest() const;
  // To be written to only with kPrivate.
  [[nodiscard]] std::span<const std::byte> payload() const noexcept;

 private:
  struct State;
  explicit BlockView(std::unique_ptr<State> state) noexcept;
  std::unique_ptr<State> state_;
};

}  // namespace modelbroker
