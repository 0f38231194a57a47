#include "broker/ram/loader.h"

#include <algorithm>
#include <functional>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>
#include <vector>

#include "broker/ram/control_groups.h"
#include "broker/ram/room.h"
#include "broker/ram/source_reader.h"
#include "shm/chunk_hasher.h"
#include "shm/instruments.h"

namespace modelbroker {
namespace {

// Readers of a cold file mostly wait for the disk, and while one makes pages or hashes the disk has one request less:
// with eight of them 2.7 GB took 1.8 s in the median of 16 turns, with 24 it took 1.65, and a bare read 1.47 (ext4 on a
// virtual disk, two cores). A quota of one core has no use for more than its share of them.
constexpr unsigned kColdReaders = 24, kColdReadersOfOneCpu = 12;

unsigned thread_count(Os& os, unsigned wanted, std::uint32_t chunks, bool cold = false) {
  if (wanted == 0) {
    const unsigned cpus = usable_cpus(os);
    wanted = cold ? std::max(cpus, std::min(kColdReaders, cpus * kColdReadersOfOneCpu)) : cpus;
  }
  return std::clamp(wanted, 1U, std::max(1U, chunks));
}

// Calls `work(chunk)` for every chunk on `threads` threads, this one included, and returns the first error.
Result<void> for_each_chunk(std::uint32_t chunks, unsigned threads, LoadProgress& progress,
                            const std::function<Result<void>(std::uint32_t)>& work) {
  std::atomic<std::uint32_t> next{0};
  std::atomic<bool> stop{false};
  std::mutex mutex;
  std::optional<Error> first;  // guarded by mutex
  const auto pull = [&] {
    for (std::uint32_t chunk = next++; chunk < chunks && !stop; chunk = next++) {
      Result<void> done = progress.cancelled ? fail(ErrorCode::kCancelled, "the load was cancelled") : work(chunk);
      if (done) continue;
      stop = true;
      const std::lock_guard lock(mutex);
      if (!first) first = std::move(done).error();
    }
  };
  {
    std::vector<std::jthread> others;
    try {
      while (others.size() + 1 < threads) others.emplace_back(pull);
    } catch (const std::system_error&) {
      // No more threads to be had: those that run do the work.
    }
    pull();
  }
  if (first) return tl::unexpected(std::move(*first));
  return {};
}

Error changed(const std::string& label) {
  return {ErrorCode::kDataLoss,
          "'" + label + "' changed while it was being loaded: load it again when its writer has finished"};
}

// The source as it is now; data_loss if its size or mtime is not what it was.
Result<FileIdentity> alike_now(Os& os, int fd, const FileIdentity& was, const std::string& label) {
  MODELBROKER_ASSIGN(const FileIdentity now, identify(os, fd, label));
  if (now.alike(was)) return now;
  return tl::unexpected(changed(label));
}

bool same_header(const Directory& one, const Directory& other) {
  return one.payload == other.payload && one.tensors == other.tensors && one.metadata == other.metadata;
}

// Where a chunk of a block comes from.
ByteRange in_source(const BlockLayout& layout, const Directory& directory, std::uint32_t index) {
  const ByteRange chunk = layout.chunk(index);
  return {directory.payload.offset + (chunk.offset - layout.payload.offset), chunk.size};
}

// Whether the source's bytes are those of these hashes; stops at the first chunk that differs.
Result<bool> has_hashes(SourceReader& source, const Directory& directory, const BlockLayout& layout,
                        const ChunkHashes& hashes, unsigned threads, LoadProgress& progress) {
  std::atomic<bool> same{true};
  const auto compare = [&](std::uint32_t index) -> Result<void> {
    if (!same) return {};
    const ByteRange range = in_source(layout, directory, index);
    const bool direct = source.cold(range.offset, range.size);
    std::vector<std::byte> buffer(std::min(range.size, kHugePage) + 2 * kPage);
    const std::uint64_t address = reinterpret_cast<std::uintptr_t>(buffer.data());
    const std::span<std::byte> pages = std::span(buffer).subspan(round_up(address, kPage) - address);
    ChunkHasher hasher;
    for (std::uint64_t at = range.offset; at < range.end();) {
      const std::uint64_t end = std::min(range.end(), round_down(at + kHugePage, kPage));
      // In its page as it lies in the file: what a direct read demands.
      const std::span<std::byte> piece = pages.subspan(at % kPage, end - at);
      MODELBROKER_TRY(source.read(piece, at, direct));
      hasher.update(piece);
      at = end;
    }
    if (hasher.digest() != hashes[index]) same = false;
    return {};
  };
  MODELBROKER_TRY(for_each_chunk(layout.chunk_count(), threads, progress, compare));
  return same.load();
}

// A file system that others filled says ENOSPC, EFAULT where a touch of its memory would be SIGBUS, or that it has no
// inode left: told with the numbers. `held`: what this load has made there.
Error explained(Os& os, const BlockDirectory& where, const LoadPlan& plan, std::uint64_t held, Error error) {
  if (error.code != ErrorCode::kResourceExhausted || !error.details.empty()) return error;
  FileSystemRoom room = file_system_room(os, where.path());
  if (room.free) *room.free += held;
  const bool is_full = room.free && *room.free < plan.layout.block_size;
  if (!is_full && room.has_inodes) return error;
  return no_room("'" + plan.label + "'", plan.layout.block_size, where.path(), room);
}

// One chunk's way: its pages made, its bytes read, its hash taken, 2 MiB at a time while they are in the cache.
class ChunkLoader {
 public:
  ChunkLoader(SourceReader& source, BlockWriter& writer, std::uint64_t source_offset, LoadProgress& progress)
      : source_(source), writer_(writer), source_offset_(source_offset), progress_(progress) {}

  [[nodiscard]] Result<std::uint64_t> load(const ByteRange& chunk) {
    const std::uint64_t payload = writer_.layout().payload.offset;
    const auto in_source = [&](std::uint64_t offset) { return source_offset_ + (offset - payload); };
    const bool direct = source_.cold(in_source(chunk.offset), chunk.size);
    ChunkHasher hasher;
    for (std::uint64_t at = chunk.offset; at < chunk.end();) {
      const std::uint64_t end = std::min(chunk.end(), round_up(at + 1, kHugePage));
      MODELBROKER_TRY(writer_.make_pages({at, end - at}));
      const std::span<std::byte> piece = writer_.bytes().subspan(at, end - at);
      MODELBROKER_TRY(source_.read(piece, in_source(at), direct));
      hasher.update(piece);
      progress_.read_bytes += piece.size();
      at = end;
    }
    crash_point("load.chunk_read");
    return hasher.digest();
  }

 private:
  SourceReader& source_;
  BlockWriter& writer_;
  std::uint64_t source_offset_;
  LoadProgress& progress_;
};

}  // namespace

Result<LoadPlan> plan_load(Directory directory, const LoadIdentity& identity) {
  LoadPlan plan;
  plan.label = identity.label;
  plan.manifest.name = identity.name;
  plan.manifest.type = identity.type;
  plan.manifest.format = directory.format;
  plan.manifest.source_path = identity.path;
  plan.manifest.source = directory.source;
  plan.manifest.set = identity.set;
  plan.manifest.metadata = directory.metadata;
  plan.manifest.tensors = directory.tensors;
  plan.encoded = plan.manifest.encode();
  auto layout = BlockLayout::plan(directory.payload.size, directory.payload.offset % kPage, plan.encoded.size());
  if (!layout) {
    Error error = std::move(layout).error();
    error.message = "'" + identity.label + "': " + error.message;
    return tl::unexpected(std::move(error));
  }
  plan.layout = *layout;
  plan.directory = std::move(directory);
  return plan;
}

Result<LoadedBlock> load_block(Os& os, const BlockDirectory& where, int source_fd, const LoadPlan& plan,
                               const LoadSettings& settings, LoadProgress& progress) {
  const Directory& directory = plan.directory;
  progress.total_bytes = directory.payload.size;
  BlockPlan block_plan;
  block_plan.payload_size = directory.payload.size;
  block_plan.phase = directory.payload.offset % kPage;
  block_plan.manifest_size = plan.encoded.size();
  block_plan.generation = settings.generation;
  block_plan.broker_boot_id = settings.broker_boot_id;
  block_plan.huge_pages = settings.huge_pages;
  block_plan.group = settings.group;
  block_plan.gauge = settings.gauge;
  auto created = BlockWriter::create(os, where, block_plan);
  if (!created) return tl::unexpected(explained(os, where, plan, 0, std::move(created).error()));
  BlockWriter writer = std::move(*created);
  const BlockLayout layout = writer.layout();
  SourceReader source(os, source_fd, plan.label);
  ChunkLoader loader(source, writer, directory.payload.offset, progress);
  ChunkHashes hashes(layout.chunk_count());
  const auto load = [&](std::uint32_t index) -> Result<void> {
    if (settings.headroom) {
      if (auto room = settings.headroom->check(layout.chunk(index).size); !room) {
        return fail(room.error().code, "loading '" + plan.label + "' was stopped: " + room.error().message,
                    room.error().details);
      }
    }
    MODELBROKER_ASSIGN(hashes[index], loader.load(layout.chunk(index)));
    return {};
  };
  const bool cold = source.cold(directory.payload.offset, directory.payload.size);
  const unsigned threads = thread_count(os, settings.threads, layout.chunk_count(), cold);
  if (auto loaded = for_each_chunk(layout.chunk_count(), threads, progress, load); !loaded) {
    const std::uint64_t held = writer.bytes_held().value_or(0);
    return tl::unexpected(explained(os, where, plan, held, std::move(loaded).error()));
  }
  MODELBROKER_ASSIGN(const FileIdentity now, alike_now(os, source_fd, directory.source, plan.label));
  if (now != directory.source) {
    MODELBROKER_ASSIGN(const Directory again, read_directory(os, source_fd, plan.label));
    if (!same_header(again, directory)) return tl::unexpected(changed(plan.label));
    MODELBROKER_ASSIGN(const bool same, has_hashes(source, directory, layout, hashes, threads, progress));
    MODELBROKER_TRY(alike_now(os, source_fd, now, plan.label));
    if (!same) return tl::unexpected(changed(plan.label));
  }
  if (progress.cancelled) return fail(ErrorCode::kCancelled, "the load was cancelled");
  MODELBROKER_ASSIGN(Block block, std::move(writer).publish(plan.manifest, plan.encoded, hashes));
  return LoadedBlock{std::move(block), now};
}

Result<bool> same_bytes(Os& os, int source_fd, const Directory& directory, const Block& block, LoadProgress& progress) {
  const BlockLayout& layout = block.header().layout;
  const Manifest& manifest = block.manifest();
  if (layout.payload.size != directory.payload.size || manifest.tensors != directory.tensors ||
      manifest.metadata != directory.metadata) {
    return false;
  }
  MODELBROKER_ASSIGN(const ChunkHashes hashes, block.chunk_hashes(os));
  SourceReader source(os, source_fd, manifest.source_path);
  const unsigned threads = thread_count(os, 0, layout.chunk_count());
  MODELBROKER_ASSIGN(const bool same, has_hashes(source, directory, layout, hashes, threads, progress));
  MODELBROKER_TRY(alike_now(os, source_fd, directory.source, manifest.source_path));
  return same;
}

}  // namespace modelbroker
