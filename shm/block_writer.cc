#include <fcntl.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <iterator>
#include <mutex>

#include "shm/block.h"
#include "shm/instruments.h"
#include "shm/mapping.h"
#include "shm/pages.h"

namespace modelbroker {
namespace {

Result<BootId> kernel_boot_id(Os& os) {
  const auto text = os.read_text("/proc/sys/kernel/random/boot_id");
  if (!text) return fail_errno(text.error().number, "reading the kernel's boot id");
  std::string digits;
  std::ranges::copy_if(*text, std::back_inserter(digits), [](char c) { return c != '-' && c != '\n'; });
  BootId id{};
  if (digits.size() != 2 * id.size()) return fail(ErrorCode::kInternal, "the kernel's boot id is not one");
  for (std::size_t i = 0; i < id.size(); ++i) {
    const char* const begin = digits.data() + 2 * i;
    if (std::from_chars(begin, begin + 2, id[i], 16).ptr != begin + 2) {
      return fail(ErrorCode::kInternal, "the kernel's boot id is not one");
    }
  }
  return id;
}

// 2 MiB of an ordinary block, or the whole of a compact one.
struct Step {
  std::mutex mutex;   // held while its pages are made: two callers may meet in one
  bool made = false;  // guarded by mutex
};

}  // namespace

struct BlockWriter::State {
  explicit State(Os& os_) : os(os_) {}
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  ~State() {
    mapping = Mapping();
    // Never published. A file that stays is counted on.
    if (!path.empty()) (void)gauge->remove(os, path, std::move(fd));
  }

  [[nodiscard]] std::uint64_t step() const noexcept { return layout.compact ? layout.block_size : kHugePage; }
  [[nodiscard]] Result<void> make_range(const ByteRange& range);
  [[nodiscard]] Result<void> make_step(std::uint64_t index);
  [[nodiscard]] BlockHeader write_contents(std::span<const std::byte> manifest, const ChunkHashes& hashes);
  [[nodiscard]] Result<BlockHeader> seal(std::span<const std::byte> manifest, const ChunkHashes& hashes);

  Os& os;
  std::string directory;
  BlockName name;
  std::string path;  // of the `.tmp`; empty once it is published
  BlockLayout layout;
  BlockPlan plan;
  BootId kernel_boot{};
  Fd fd;
  std::shared_ptr<BlockGauge> gauge;
  Mapping mapping;
  std::vector<Step> steps;
  std::atomic<bool> all_huge{true};
};

Result<void> BlockWriter::State::make_step(std::uint64_t index) {
  Step& part = steps[index];
  const std::lock_guard lock(part.mutex);
  if (part.made) return {};
  const std::uint64_t offset = index * step();
  const std::uint64_t size = std::min(step(), layout.block_size - offset);
  const auto huge =
      modelbroker::make_pages(os, fd.get(), mapping.bytes().data(), {offset, size}, plan.huge_pages && !layout.compact);
  if (!huge) return fail_errno(huge.error().number, "making pages for block '" + path + "'");
  if (!*huge) all_huge = false;
  part.made = true;
  crash_point("load.pages_made");
  return {};
}

Result<void> BlockWriter::State::make_range(const ByteRange& range) {
  if (range.offset > layout.block_size || range.size > layout.block_size - range.offset) {
    return fail(ErrorCode::kInvalidArgument, "pages were asked for outside block '" + path + "'");
  }
  if (range.size == 0) return {};
  const std::uint64_t last = (range.end() - 1) / step();
  for (std::uint64_t index = range.offset / step(); index <= last; ++index) MODELBROKER_TRY(make_step(index));
  return {};
}

// Everything but the payload's own bytes. What a direct read left around them goes to zero.
BlockHeader BlockWriter::State::write_contents(std::span<const std::byte> manifest, const ChunkHashes& hashes) {
  const std::span<std::byte> bytes = mapping.bytes();
  const auto put = [&](const ByteRange& range, std::span<const std::byte> source) {
    std::ranges::copy(source, bytes.subspan(range.offset, range.size).begin());
  };
  std::ranges::fill(bytes.first(layout.payload.offset), std::byte{0});
  std::ranges::fill(bytes.subspan(layout.payload.end()), std::byte{0});
  put(layout.manifest, manifest);
  put(layout.chunk_table, std::as_bytes(std::span(hashes)));
  BlockHeader header;
  header.layout = layout;
  header.generation = plan.generation;
  header.broker_boot_id = plan.broker_boot_id;
  header.kernel_boot_id = kernel_boot;
  header.digest = digest_of(layout.payload.size, hashes);
  header.manifest_hash = hash64(manifest);
  header.huge_pages = all_huge;
  put({0, kPage}, header.encode());
  return header;
}

// Finishes the bytes, lets go of them and makes the file read-only.
Result<BlockHeader> BlockWriter::State::seal(std::span<const std::byte> manifest, const ChunkHashes& hashes) {
  if (manifest.size() != layout.manifest.size || hashes.size() != layout.chunk_count()) {
    return fail(ErrorCode::kInvalidArgument, "block '" + path + "' was planned for another manifest or payload");
  }
  MODELBROKER_TRY(make_range({0, layout.block_size}));
  const BlockHeader header = write_contents(manifest, hashes);
  mapping = Mapping();
  if (plan.group) {
    if (auto given = os.fchgrp(fd.get(), *plan.group); !given) {
      return fail_errno(given.error().number, "giving block '" + path + "' to group " + std::to_string(*plan.group));
    }
  }
  if (auto sealed = os.fchmod(fd.get(), plan.group ? 0440 : 0400); !sealed) {
    return fail_errno(sealed.error().number, "sealing block '" + path + "'");
  }
  crash_point("load.sealed");
  return header;
}

BlockWriter::BlockWriter(std::unique_ptr<State> state) noexcept : state_(std::move(state)) {}
BlockWriter::BlockWriter(BlockWriter&&) noexcept = default;
BlockWriter& BlockWriter::operator=(BlockWriter&&) noexcept = default;
BlockWriter::~BlockWriter() = default;

Result<BlockWriter> BlockWriter::create(Os& os, const BlockDirectory& where, const BlockPlan& plan) {
  auto state = std::make_unique<State>(os);
  MODELBROKER_ASSIGN(state->layout, BlockLayout::plan(plan.payload_size, plan.phase, plan.manifest_size));
  MODELBROKER_ASSIGN(state->kernel_boot, kernel_boot_id(os));
  state->plan = plan;
  state->gauge = plan.gauge ? plan.gauge : std::make_shared<BlockGauge>();
  state->directory = where.path();
  state->name = where.temporary(plan.generation);
  const std::string path = where.path_of(state->name);
  auto fd = os.open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (!fd) return fail_errno(fd.error().number, "making block '" + path + "'");
  state->path = path;
  state->fd = std::move(*fd);
  state->gauge->follow(os, state->fd.get());
  crash_point("load.file_made");
  if (auto sized = os.ftruncate(state->fd.get(), state->layout.block_size); !sized) {
    return fail_errno(sized.error().number, "sizing block '" + path + "'");
  }
  MODELBROKER_ASSIGN(state->mapping,
                     Mapping::map(os, state->fd.get(), state->layout.block_size, Mapping::Kind::kShared));
  state->steps = std::vector<Step>(round_up(state->layout.block_size, state->step()) / state->step());
  return BlockWriter(std::move(state));
}

const BlockLayout& BlockWriter::layout() const noexcept { return state_->layout; }
std::span<std::byte> BlockWriter::bytes() noexcept { return state_->mapping.bytes(); }
std::span<std::byte> BlockWriter::payload() noexcept {
  return bytes().subspan(layout().payload.offset, layout().payload.size);
}

Result<void> BlockWriter::make_pages(ByteRange range) { return state_->make_range(range); }

Result<std::uint64_t> BlockWriter::bytes_held() const {
  const auto found = state_->os.fstat(state_->fd.get());
  if (!found) return fail_errno(found.error().number, "looking at block '" + state_->path + "'");
  return static_cast<std::uint64_t>(found->st_blocks) * 512;
}

Result<Block> BlockWriter::publish(const Manifest& manifest, std::span<const std::byte> manifest_bytes,
                                   const ChunkHashes& hashes) && {
  const std::unique_ptr<State> state = std::move(state_);  // unlinks the `.tmp` wherever we fail
  Os& os = state->os;
  Block block;
  MODELBROKER_ASSIGN(block.header_, state->seal(manifest_bytes, hashes));
  block.name_ = state->name;
  block.name_.state = BlockState::kPublished;
  block.name_.digest16 = to_hex(block.header_.digest).substr(0, state->name.digest16.size());
  block.directory_ = state->directory;
  block.path_ = state->directory + "/" + block.name_.file_name();
  block.manifest_ = std::make_shared<const Manifest>(manifest);
  block.page_kind_ = block.header_.huge_pages ? PageKind::kHuge : PageKind::kSmall;
  const auto found = os.fstat(state->fd.get());
  if (!found) return fail_errno(found.error().number, "looking at block '" + state->path + "'");
  block.group_ = state->plan.group;
  block.gauge_ = state->gauge;
  block.gauge_->settle(static_cast<std::uint64_t>(found->st_blocks) * 512);
  // Now the writing description goes and a read-only one stays: the write lease counts descriptions.
  state->fd.reset();
  auto reader = os.open(state->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0);
  if (!reader) return fail_errno(reader.error().number, "opening block '" + state->path + "'");
  block.fd_ = std::move(*reader);
  block.claim(os);
  crash_point("publish.before_rename");
  if (auto renamed = os.rename_noreplace(state->path, block.path_); !renamed) {
    return fail_errno(renamed.error().number, "publishing block '" + block.path_ + "'");
  }
  state->path.clear();
  crash_point("publish.after_rename");
  return block;
}

}  // namespace modelbroker
