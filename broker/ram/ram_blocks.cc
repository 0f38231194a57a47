#include "broker/ram/ram_blocks.h"

#include <algorithm>
#include <tuple>

namespace modelbroker {

std::string_view to_string(Outcome outcome) noexcept {
  switch (outcome) {
    case Outcome::kResident:
      return "resident";
    case Outcome::kRevived:
      return "revived";
    case Outcome::kLoaded:
      return "loaded";
    case Outcome::kAlias:
      return "alias";
  }
  return "";
}
namespace {

constexpr std::size_t kMostSources = 17;  // more copies are hashed again at each look

auto rank(const RamBlock& block) { return std::tuple(!block.draining(), block.models > 0, block.generation()); }

}  // namespace

bool RamBlock::holds(const FileIdentity& file) const {
  return std::ranges::find(sources, file, &SourceFile::identity) != sources.end();
}

bool RamBlock::is_copy(std::string_view path) const {
  return std::ranges::find(sources.begin() + 1, sources.end(), path, &SourceFile::path) != sources.end();
}

void RamBlock::tell_by(const std::string& path) {
  const auto known = std::ranges::find(sources, path, &SourceFile::path);
  if (known == sources.end()) {
    sources.front().path = path;
  } else {
    std::rotate(sources.begin(), known, known + 1);
  }
}

RamBlock& RamBlocks::add(RamBlock block) {
  const std::string id = block.id();
  RamBlock& added = blocks_.insert_or_assign(id, std::move(block)).first->second;
  index(added);
  return added;
}

void RamBlocks::erase(const std::string& id) {
  const auto found = blocks_.find(id);
  if (found == blocks_.end()) return;
  unindex(found->second);
  blocks_.erase(found);
}

RamBlock* RamBlocks::find(const std::string& id) {
  const auto found = blocks_.find(id);
  return found == blocks_.end() ? nullptr : &found->second;
}

void RamBlocks::index(const RamBlock& block) {
  for (const RamBlock::SourceFile& source : block.sources) kinds_.emplace(kind_of(source.identity), block.id());
}

void RamBlocks::unindex(const RamBlock& block) {
  for (const RamBlock::SourceFile& source : block.sources) kinds_.erase({kind_of(source.identity), block.id()});
}

// The best first, without those that are damaged or going.
std::vector<RamBlock*> RamBlocks::of_kind(const FileIdentity& file) {
  std::vector<RamBlock*> found;
  const Kind kind = kind_of(file);
  for (auto entry = kinds_.lower_bound({kind, ""}); entry != kinds_.end() && entry->first == kind; ++entry) {
    RamBlock& block = blocks_.at(entry->second);
    if (!block.removing && !block.damaged) found.push_back(&block);
  }
  std::ranges::sort(found, [](const RamBlock* one, const RamBlock* other) { return rank(*one) > rank(*other); });
  return found;
}

RamBlock* RamBlocks::by_source(const FileIdentity& source) {
  const std::vector<RamBlock*> blocks = of_kind(source);
  const auto found = std::ranges::find_if(blocks, [&](const RamBlock* block) { return block->holds(source); });
  return found == blocks.end() ? nullptr : *found;
}

std::vector<RamBlock*> RamBlocks::alike(const FileIdentity& source) {
  std::vector<RamBlock*> blocks = of_kind(source);
  std::erase_if(blocks, [&](const RamBlock* block) { return !block->source().alike(source); });
  return blocks;
}

void RamBlocks::confirm(RamBlock& block, const std::string& path, const FileIdentity& file) {
  unindex(block);
  auto known = std::ranges::find(block.sources, path, &RamBlock::SourceFile::path);
  if (block.source().same_but_ctime(file)) known = block.sources.begin();
  if (known != block.sources.end()) {
    known->identity = file;
  } else {
    if (block.sources.size() >= kMostSources) block.sources.erase(block.sources.begin() + 1);
    block.sources.push_back({path, file});
  }
  index(block);
}

Result<void> RamBlocks::drain(RamBlock& block) {
  if (!block.draining()) MODELBROKER_TRY(block.block->drain(os_));
  if (block.bytes() == 0) block.damaged = true;  // its file was missing
  return {};
}

RamBlocks::Totals RamBlocks::totals() const {
  Totals totals;
  for (const auto& [id, block] : blocks_) {
    const std::uint64_t bytes = block.bytes();  // read once: a job may free them in between
    if (block.draining()) {
      totals.draining += bytes;
      if (block.removing) totals.removing += bytes;
    } else {
      totals.made += bytes;
    }
  }
  return totals;
}

}  // namespace modelbroker
