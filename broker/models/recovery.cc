#include "broker/models/recovery.h"

#include <algorithm>
#include <map>

#include "broker/base/log.h"
#include "broker/models/default_name.h"
#include "shm/instruments.h"

namespace modelbroker {
namespace {

// What a load makes of a file in one second, where nobody measured it: bytes.
constexpr double kUsualRate = 2e9;

// The books' entry for an adopted block, without names.
Resident entry_of(const Books& books, Block block, const BlockRecord* record) {
  Resident resident;
  const Manifest& manifest = block.manifest();
  resident.type = manifest.type;
  resident.path = manifest.source_path;
  resident.source = manifest.source;
  if (record != nullptr) {
    resident.type = record->type;
    resident.path = record->path;
    resident.pinned = record->pinned;
    resident.damaged = record->damaged;
    resident.source.ctime_ns = record->ctime_ns;
    resident.loader = record->loader;
    resident.source_uid = record->source_uid;
  }
  // Without a record nobody knows why it was withdrawn: it is not given out again.
  if (record == nullptr && block.name().state == BlockState::kDraining) resident.damaged = true;
  resident.is_private = books.rights.group().has_value() && block.group() != books.rights.group();
  resident.keep_alive = record == nullptr ? books.config.keep_alive : Duration(record->keep_alive_ns);
  resident.block = std::make_shared<Block>(std::move(block));
  resident.adopted = true;
  resident.seconds_to_load = static_cast<double>(resident.bytes()) / kUsualRate;
  books.used(resident);
  return resident;
}

// Whether this block, which nobody was told of, is the evicted model of that name: then it is kept as that was.
bool is_evicted(const Books& books, const EvictedNames::Model& evicted, const Resident& resident) {
  if (evicted.source && evicted.source->same_but_ctime(resident.source)) return true;
  return !books.rights.group() && evicted.given.path == resident.path;
}

// False: the name is kept for somebody.
bool take_name(Books& books, Resident& resident, const std::string& name, GivenName given) {
  if (const EvictedNames::Model* const evicted = books.evicted.find(name)) {
    if (is_evicted(books, *evicted, resident)) {
      given = evicted->given;
      Books::keep_as(resident, *evicted);
      resident.loader = evicted->given.loader;
    } else if (books.rights.group()) {
      return false;
    }
  }
  return books.store.add_name(resident, name, std::move(given)).has_value();
}

using Known = std::map<std::string, const BlockRecord*>;

// A block that the database does not know: it was published just before the death, or the database is lost.
void name_from_manifest(Books& books, Resident& resident, const Known& known, Recovered& recovered) {
  const std::string& name = resident.block->manifest().name;
  // With a group its path may have been told by a member.
  const GivenName given{.loader = 0, .path = resident.path, .is_label = books.rights.group().has_value()};
  Resident* const there = given.is_label ? nullptr : books.store.by_path(resident.path);
  Resident* const owner = there != nullptr && there != &resident ? there : books.store.by_name(name);
  if (owner == nullptr && take_name(books, resident, name, given)) return;
  if (!given.is_label && owner != nullptr && owner->path == resident.path && !resident.path.empty()) {
    const bool is_older =
        !known.contains(owner->block->id()) && owner->block->name().generation < resident.block->name().generation;
    if (!is_older) {  // nobody was told of this one; what is known has the names
      recovered.superseded.push_back(resident.block->id());
      return;
    }
    recovered.superseded.push_back(owner->block->id());
    books.store.move_names(*owner, resident, resident.path);
    return;
  }
  // Generations are never given twice: this one is free.
  const std::string other = with_suffix(name, "@g" + std::to_string(resident.block->name().generation));
  if (!books.store.add_name(resident, other, given)) recovered.superseded.push_back(resident.block->id());
}

// Whether it can be tried again with a better outcome: the block itself may be whole.
bool may_pass(const Error& error) {
  return error.code == ErrorCode::kResourceExhausted || error.code == ErrorCode::kUnavailable;
}

// Names that a block had when the broker died, which it lost in that moment or since: who attaches one gets its file
// loaded again. True if there were any.
bool remember_names(Books& books, const BlockRecord& record, const Resident* resident) {
  for (std::size_t i = 0; i < record.names.size(); ++i) {
    EvictedNames::Model model{.given = record.given[i],
                              .type = record.type,
                              .keep_alive = Duration(record.keep_alive_ns),
                              .pinned = record.pinned};
    if (resident != nullptr) model.source = resident->source;
    books.evicted.remember(record.names[i], std::move(model));
  }
  return !record.names.empty();
}

// True if it is in the books. A start that cannot say what lies in memory fails, for its books would be wrong.
Result<bool> adopt_one(Books& books, const BlockName& name, const BlockRecord* record, Recovered& recovered) {
  auto block = Block::adopt(books.os, books.directory, name);
  if (block) {
    block->claim(books.os);
    // Another group's, or no group's any more.
    if (block->group() && block->group() != books.rights.group()) {
      if (auto taken = block->take_from_group(books.os); !taken) log_error(taken.error().message);
    }
    books.store.add(entry_of(books, std::move(*block), record));
    return true;
  }
  if (may_pass(block.error())) return tl::unexpected(block.error());
  log_error("block " + name.file_name() + " is not adopted: " + block.error().message);
  if (block.error().code != ErrorCode::kDataLoss) {  // a later version's: not ours to judge
    const auto found = books.os.lstat(books.directory.path_of(name));
    ++books.foreign.blocks;
    if (found) books.foreign.bytes += static_cast<std::uint64_t>(found->st_blocks) * 512;
    return false;
  }
  MODELBROKER_TRY(books.directory.remove(books.os, name));
  recovered.damaged.emplace_back(name.id(), block.error().message);
  return false;
}

}  // namespace

Result<Recovered> adopt_blocks(Books& books, const std::vector<BlockRecord>& records,
                               std::vector<EvictedNames::Named> evicted) {
  MODELBROKER_ASSIGN(BlockDirectory::Listing listing, books.directory.list(books.os));
  for (const std::string& foreign : listing.foreign) {
    log_warning("'" + foreign + "' is named like a block of ours and is not safe to touch: left alone");
  }
  for (const BlockName& name : listing.doubles) {
    log_warning("'" + name.file_name() + "' is a second name or a copy of a block: removed");
    MODELBROKER_TRY(books.directory.remove_double(books.os, name));
  }
  std::ranges::sort(listing.blocks, {}, &BlockName::generation);
  Known known;
  for (const BlockRecord& record : records) known[record.block] = &record;
  for (EvictedNames::Named& named : evicted) books.evicted.restore(std::move(named));
  Recovered recovered;
  std::vector<std::string> nameless;
  for (const BlockName& name : listing.blocks) {
    books.highest_generation = std::max(books.highest_generation, name.generation);
    if (name.state == BlockState::kTemporary) {
      MODELBROKER_TRY(books.directory.remove(books.os, name));
      ++recovered.garbage;
      crash_point("adopt.garbage_removed");
      continue;
    }
    const auto record = known.find(name.id());
    const BlockRecord* const found = record == known.end() ? nullptr : record->second;
    MODELBROKER_ASSIGN(const bool adopted, adopt_one(books, name, found, recovered));
    if (!adopted) continue;
    crash_point("adopt.block_adopted");
    Resident& resident = *books.store.by_block(name.id());
    if (resident.draining()) {
      ++recovered.draining;
      // Why it was withdrawn was not written: it is not given out again.
      if (found != nullptr && !found->names.empty()) resident.damaged = true;
      continue;
    }
    ++recovered.adopted;
    if (resident.damaged) {  // and could not be withdrawn
      recovered.superseded.push_back(name.id());
      continue;
    }
    if (found != nullptr) {
      for (std::size_t i = 0; i < found->names.size(); ++i) {
        (void)books.store.add_name(resident, found->names[i], found->given[i]);
      }
    }
    if (!resident.names.empty()) continue;
    // One that is known to have no name was superseded, and not drained yet.
    (found != nullptr && found->names.empty() ? recovered.superseded : nameless).push_back(name.id());
  }
  for (const std::string& block : nameless) {
    name_from_manifest(books, *books.store.by_block(block), known, recovered);
  }
  for (const BlockRecord& record : records) {
    const Resident* const resident = books.store.by_block(record.block);
    if (resident == nullptr) recovered.gone.push_back(record.block);
    const bool is_lost = resident == nullptr || resident->draining() || resident->damaged;
    if (is_lost && remember_names(books, record, resident) && resident != nullptr) {
      recovered.changed.push_back(record.block);
    }
  }
  for (const auto& [id, resident] : books.store.all()) {
    for (const std::string& name : resident.names) books.evicted.forget(name);
  }
  return recovered;
}

}  // namespace modelbroker
