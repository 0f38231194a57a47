#include <algorithm>

#include "shm/block.h"
#include "shm/mapping.h"

namespace modelbroker {
namespace {

Result<void> check_chunk_table(std::span<const std::byte> block, const BlockHeader& header) {
  const ByteRange& range = header.layout.chunk_table;
  ChunkHashes hashes(header.layout.chunk_count());
  std::ranges::copy(block.subspan(range.offset, range.size), std::as_writable_bytes(std::span(hashes)).begin());
  if (digest_of(header.layout.payload.size, hashes) == header.digest) return {};
  return fail(ErrorCode::kDataLoss, "the block's chunk table does not agree with its digest");
}

}  // namespace

struct BlockView::State {
  Mapping mapping;
  BlockHeader header;
};

BlockView::BlockView(std::unique_ptr<State> state) noexcept : state_(std::move(state)) {}
BlockView::BlockView(BlockView&&) noexcept = default;
BlockView& BlockView::operator=(BlockView&&) noexcept = default;
BlockView::~BlockView() = default;

Result<BlockView> BlockView::map(Os& os, const Fd& fd, Access access) {
  const auto found = os.fstat(fd.get());
  if (!found) return fail_errno(found.error().number, "looking at a block");
  const auto size = static_cast<std::uint64_t>(found->st_size);
  if (!S_ISREG(found->st_mode) || size < kPage) return fail(ErrorCode::kDataLoss, "the descriptor is no block");
  auto state = std::make_unique<State>();
  const auto kind = access == Access::kReadOnly ? Mapping::Kind::kReadOnly : Mapping::Kind::kPrivate;
  MODELBROKER_ASSIGN(state->mapping, Mapping::map(os, fd.get(), size, kind));
  const std::span<const std::byte> bytes = state->mapping.bytes();
  MODELBROKER_ASSIGN(state->header, BlockHeader::decode(bytes.first(kPage), size));
  MODELBROKER_TRY(check_chunk_table(bytes, state->header));
  return BlockView(std::move(state));
}

const BlockHeader& BlockView::header() const noexcept { return state_->header; }

Result<Manifest> BlockView::read_manifest() const {
  const BlockHeader& header = state_->header;
  const std::span<const std::byte> encoded = std::span<const std::byte>(state_->mapping.bytes())
                                                 .subspan(header.layout.manifest.offset, header.layout.manifest.size);
  if (hash64(encoded) != header.manifest_hash) return fail(ErrorCode::kDataLoss, "the block's manifest is damaged");
  return Manifest::decode(encoded, header.layout.payload.size);
}

std::span<const std::byte> BlockView::payload() const noexcept {
  const ByteRange& range = state_->header.layout.payload;
  return state_->mapping.bytes().subspan(range.offset, range.size);
}

}  // namespace modelbroker
