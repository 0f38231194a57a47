#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cassert>
#include <cerrno>
#include <cstring>

#include "shm/block.h"
#include "shm/kernel.h"
#include "shm/mapping.h"

namespace modelbroker {
namespace {

constexpr std::string_view kNoDigest = "0000000000000000";

Result<BootId> kernel_boot_id(Os& os) {
  const auto text = os.read_text("/proc/sys/kernel/random/boot_id");
  if (!text) return fail_errno(text.error().number, "reading the kernel's boot id");
  BootId id{};
  std::size_t digits = 0;
  for (const char c : *text) {
    const int value = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
    if (value < 0 || digits >= 2 * id.size()) continue;
    std::uint8_t& byte = id.at(digits / 2);
    byte = static_cast<std::uint8_t>(byte << 4U | static_cast<unsigned>(value));
    ++digits;
  }
  return id;
}

}  // namespace

struct BlockWriter::State {
  explicit State(Os& os_) : os(os_) {}
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  ~State() {
    mapping = Mapping();
    if (!path.empty()) (void)os.unlink(path);  // never published
  }

  [[nodiscard]] std::uint64_t step() const noexcept { return layout.compact ? layout.block_size : kHugePage; }
  [[nodiscard]] Result<void> make_step(std::uint64_t index);
  [[nodiscard]] Result<void> make_all();
  void write_contents(std::span<const std::byte> manifest, const ChunkHashes& hashes);

  Os& os;
  std::string directory;
  BlockName name;
  std::string path;  // of the `.tmp`; empty once it is published
  BlockLayout layout;
  BlockPlan plan;
  BootId kernel_boot{};
  Fd fd;
  Mapping mapping;
  std::vector<std::atomic<bool>> made;  // by step
  std::atomic<bool> all_huge{true};
};

// Makes one 2 MiB step (or a whole compact block) exist: as one huge page, else as small ones.
Result<void> BlockWriter::State::make_step(std::uint64_t index) {
  if (made[index]) return {};
  const std::uint64_t offset = index * step();
  const std::uint64_t size = std::min(step(), layout.block_size - offset);
  std::byte* const address = mapping.bytes().data() + offset;
  const auto out_of_memory = [&](const Errno& error) {
    return fail(ErrorCode::kResourceExhausted, error_from_errno(error.number, "making pages for block '" + path + "'").message);
  };
  const OsFeatures& features = os.features();
  const bool try_huge = plan.huge_pages && features.collapse && !layout.compact;
  bool huge = false;
  if (try_huge) {
    // Collapse wants a page to begin with, and says EFAULT here where a touch would be SIGBUS.
    if (auto first = os.advise(address, kPage, kMadvPopulateWrite); !first) return out_of_memory(first.error());
    huge = os.advise(address, size, kMadvCollapse).has_value();
  }
  if (!huge) {
    all_huge = false;
    auto small = features.populate_write ? os.advise(address, size, kMadvPopulateWrite)
                                         : os.fallocate(fd.get(), offset, size);
    if (!small) return out_of_memory(small.error());
  }
  made[index] = true;
  return {};
}

Result<void> BlockWriter::State::make_all() {
  for (std::uint64_t index = 0; index < made.size(); ++index) MODELBROKER_TRY(make_step(index));
  return {};
}

void BlockWriter::State::write_contents(std::span<const std::byte> manifest, const ChunkHashes& hashes) {
  const std::span<std::byte> bytes = mapping.bytes();
  const auto put = [&](const ByteRange& range, std::span<const std::byte> source) {
    std::ranges::copy(source, bytes.subspan(range.offset, range.size).begin());
  };
  // A direct read works in whole sectors: what it left around the payload is no part of the block.
  const std::uint64_t begin = round_down(layout.payload.offset, kPage);
  const std::uint64_t end = std::min(round_up(layout.payload.end(), kPage), layout.block_size);
  std::ranges::fill(bytes.subspan(begin, layout.payload.offset - begin), std::byte{0});
  std::ranges::fill(bytes.subspan(layout.payload.end(), end - layout.payload.end()), std::byte{0});
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
  state->directory = where.path();
  state->name = {where.uid(), where.instance(), std::string(kNoDigest), plan.generation, BlockState::kTemporary};
  const std::string path = where.path_of(state->name);
  auto fd = os.open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (!fd) return fail_errno(fd.error().number, "making block '" + path + "'");
  state->path = path;
  state->fd = std::move(*fd);
  if (auto sized = os.ftruncate(state->fd.get(), state->layout.block_size); !sized) {
    return fail_errno(sized.error().number, "sizing block '" + path + "'");
  }
  MODELBROKER_ASSIGN(state->mapping,
                     Mapping::map(os, state->fd.get(), state->layout.block_size, Mapping::Kind::kShared));
  state->made = std::vector<std::atomic<bool>>((state->layout.block_size + state->step() - 1) / state->step());
  return BlockWriter(std::move(state));
}

const BlockLayout& BlockWriter::layout() const noexcept { return state_->layout; }
std::span<std::byte> BlockWriter::bytes() noexcept { return state_->mapping.bytes(); }
std::span<std::byte> BlockWriter::payload() noexcept {
  return bytes().subspan(layout().payload.offset, layout().payload.size);
}

Result<void> BlockWriter::make_pages(ByteRange range) {
  if (range.size == 0) return {};
  assert(range.end() <= state_->layout.block_size);
  const std::uint64_t last = (range.end() - 1) / state_->step();
  for (std::uint64_t index = range.offset / state_->step(); index <= last; ++index) {
    MODELBROKER_TRY(state_->make_step(index));
  }
  return {};
}

Result<std::uint64_t> BlockWriter::bytes_held() const {
  const auto found = state_->os.fstat(state_->fd.get());
  if (!found) return fail_errno(found.error().number, "looking at block '" + state_->path + "'");
  return static_cast<std::uint64_t>(found->st_blocks) * 512;
}

Result<Block> BlockWriter::publish(const Manifest& manifest, std::span<const std::byte> manifest_bytes,
                                   const ChunkHashes& hashes) && {
  const std::unique_ptr<State> state = std::move(state_);
  Os& os = state->os;
  assert(manifest_bytes.size() == state->layout.manifest.size);
  assert(hashes.size() == state->layout.chunk_count());
  MODELBROKER_TRY(state->make_all());
  state->write_contents(manifest_bytes, hashes);
  auto header = BlockHeader::decode(state->mapping.bytes().first(kPage), state->layout.block_size);
  if (!header) return tl::unexpected(header.error());
  state->mapping = Mapping();

  if (auto sealed = os.fchmod(state->fd.get(), 0400); !sealed) {
    return fail_errno(sealed.error().number, "sealing block '" + state->path + "'");
  }
  Block block;
  block.name_ = state->name;
  block.name_.state = BlockState::kPublished;
  block.name_.digest16 = to_hex(header->digest).substr(0, kNoDigest.size());
  block.directory_ = state->directory;
  block.path_ = state->directory + "/" + block.name_.file_name();
  block.header_ = *header;
  block.manifest_ = std::make_shared<const Manifest>(manifest);
  block.page_kind_ = header->huge_pages ? PageKind::kHuge : PageKind::kSmall;
  const auto found = os.fstat(state->fd.get());
  if (!found) return fail_errno(found.error().number, "looking at block '" + state->path + "'");
  block.bytes_held_ = static_cast<std::uint64_t>(found->st_blocks) * 512;
  // The one read-only description that stays; the writing one goes with `state`.
  auto reader = os.open(state->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0);
  if (!reader) return fail_errno(reader.error().number, "opening block '" + state->path + "'");
  block.fd_ = std::move(*reader);
  if (auto renamed = os.rename_noreplace(state->path, block.path_); !renamed) {
    return fail_errno(renamed.error().number, "publishing block '" + block.path_ + "'");
  }
  state->path.clear();
  return block;
}

}  // namespace modelbroker
