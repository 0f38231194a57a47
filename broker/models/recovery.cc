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

using Known = std::map<std::string, const BlockRecord*>;

RamBlock block_of(const AdoptInto& into, Block adopted, const BlockRecord* record) {
  RamBlock block(std::move(adopted));
  const Manifest& manifest = block.block->manifest();
  block.sources.push_back({manifest.source_path, manifest.source});
  if (record != nullptr) {
    block.damaged = record->damaged;
    block.sources.front().identity.ctime_ns = record->ctime_ns;
    block.loader = record->loader;
    block.source_uid = record->source_uid;
  }
  block.is_private = into.rights.group().has_value() && block.block->group() != into.rights.group();
  block.adopted = true;
  block.seconds_to_load = static_cast<double>(block.bytes()) / kUsualRate;
  return block;
}

// Whether it can be tried again with a better outcome: the block itself may be whole.
bool may_pass(const Error& error) {
  return error.code == ErrorCode::kResourceExhausted || error.code == ErrorCode::kUnavailable;
}

// Puts it into the into. A start that cannot say what lies in memory fails, for its into would be wrong.
Result<void> adopt_one(const AdoptInto& into, const BlockName& name, const Known& known, Recovered& recovered) {
  auto block = Block::adopt(into.env.os, into.ram.directory, name);
  if (block) {
    block->claim(into.env.os);
    // Another group's, or no group's any more.
    if (block->group() && block->group() != into.rights.group()) {
      if (auto taken = block->take_from_group(into.env.os); !taken) log_error(taken.error().message);
    }
    const auto record = known.find(name.id());
    const bool is_draining =
        into.ram.blocks.add(block_of(into, std::move(*block), record == known.end() ? nullptr : record->second))
            .draining();
    ++(is_draining ? recovered.draining : recovered.adopted);
    crash_point("adopt.block_adopted");
    return {};
  }
  if (may_pass(block.error())) return tl::unexpected(block.error());
  log_error("block " + name.file_name() + " is not adopted: " + block.error().message);
  if (block.error().code != ErrorCode::kDataLoss) {  // a later version's: not ours to judge
    const auto found = into.env.os.lstat(into.ram.directory.path_of(name));
    ++into.ram.foreign.blocks;
    if (found) into.ram.foreign.bytes += static_cast<std::uint64_t>(found->st_blocks) * 512;
    return {};
  }
  MODELBROKER_TRY(into.ram.directory.remove(into.env.os, name));
  recovered.damaged.emplace_back(name.id(), block.error().message);
  return {};
}

Result<void> adopt_all(const AdoptInto& into, const Known& known, Recovered& recovered) {
  MODELBROKER_ASSIGN(BlockDirectory::Listing listing, into.ram.directory.list(into.env.os));
  for (const std::string& foreign : listing.foreign) {
    log_warning("'" + foreign + "' is named like a block of ours and is not safe to touch: left alone");
  }
  for (const BlockName& name : listing.doubles) {
    log_warning("'" + name.file_name() + "' is a second name or a copy of a block: removed");
    MODELBROKER_TRY(into.ram.directory.remove_double(into.env.os, name));
  }
  for (const BlockName& name : listing.blocks) {
    into.ram.highest_generation = std::max(into.ram.highest_generation, name.generation);
    if (name.state != BlockState::kTemporary) {
      MODELBROKER_TRY(adopt_one(into, name, known, recovered));
      continue;
    }
    MODELBROKER_TRY(into.ram.directory.remove(into.env.os, name));
    ++recovered.garbage;
    crash_point("adopt.garbage_removed");
  }
  return {};
}

// Its names are remembered: its end was not written, or it lost a block in that moment or since. Who attaches one gets
// the file loaded again.
void remember(const AdoptInto& into, const ModelRecord& record, const RamBlock* block) {
  for (std::size_t i = 0; i < record.names.size(); ++i) {
    RememberedNames::Model model{.given = record.given[i],
                                 .type = record.type,
                                 .keep_alive = Duration(record.keep_alive_ns),
                                 .pinned = record.pinned};
    if (block != nullptr) model.source = block->source();
    into.models.remembered().remember(record.names[i], std::move(model));
  }
}

// A model as the database knows it, or its names.
void adopt_model(const AdoptInto& into, const ModelRecord& record, Recovered& recovered) {
  ModelEdit edit{.id = record.id};
  bool is_whole = !record.blocks.empty() && !record.names.empty();
  for (const std::string& id : record.blocks) {
    RamBlock* const block = into.ram.blocks.find(id);
    // Why it was withdrawn was not written: it is not given out again.
    if (block != nullptr && block->draining()) block->damaged = true;
    is_whole = is_whole && block != nullptr && !block->damaged;
    edit.parts.push_back(block);
  }
  if (!is_whole) {
    const bool is_alone = edit.parts.size() == 1 && record.id == record.blocks.front();
    remember(into, record, is_alone ? edit.parts.front() : nullptr);
    recovered.models.push_back(record.id);
    recovered.blocks.insert(recovered.blocks.end(), record.blocks.begin(), record.blocks.end());
    return;
  }
  for (std::size_t i = 0; i < record.names.size(); ++i) edit.names.push_back({record.names[i], record.given[i]});
  edit.type = record.type;
  edit.path = record.path;
  edit.pinned = record.pinned;
  edit.keep_alive = Duration(record.keep_alive_ns);
  into.models.apply({.why = Why::kAdopted, .edits = {std::move(edit)}});
}

// A model that the database does not know: its blocks were published just before the death, or the database is lost.
struct Unnamed {
  std::vector<RamBlock*> parts;
  bool is_set = false;
  std::string name, type, path;  // as their manifests say
};

// Whether this, whose load was not answered yet, is the remembered model: then it keeps that one's type and pin.
bool is_remembered(const AdoptInto& into, const RememberedNames::Model& remembered, const Unnamed& model) {
  const FileIdentity& source = model.parts.front()->source();
  if (!model.is_set && remembered.source && remembered.source->same_but_ctime(source)) return true;
  return !into.rights.group() && remembered.given.path == model.path;
}

// False: it is another's, or kept for somebody.
bool take_name(const AdoptInto& into, const Unnamed& model, const std::string& name, ModelEdit& edit) {
  if (into.models.by_name(name) != nullptr) return false;
  GivenName given{.loader = 0, .path = model.path, .is_label = into.rights.group().has_value()};
  if (const RememberedNames::Model* const remembered = into.models.remembered().find(name)) {
    if (is_remembered(into, *remembered, model)) {
      given = remembered->given;
      edit.type = remembered->type;
      edit.keep_alive = remembered->keep_alive;
      edit.pinned = remembered->pinned;
      for (RamBlock* const part : model.parts) {
        if (part->models == 0) part->loader = remembered->given.loader;
      }
    } else if (into.rights.group()) {
      return false;
    }
  }
  edit.names.push_back({name, std::move(given)});
  return true;
}

bool is_superseded(const ModelEntry& owner, const Unnamed& model, const Known& known) {
  const bool is_known =
      std::ranges::any_of(owner.parts, [&](const RamBlock* part) { return known.contains(part->id()); });
  std::uint64_t newest = 0;
  for (const RamBlock* const part : model.parts) newest = std::max(newest, part->generation());
  return is_known || owner.generation() > newest;
}

void name_from_manifest(const AdoptInto& into, const Unnamed& model, const Known& known) {
  ModelEdit edit{.id = into.models.id_for(model.parts, model.is_set),
                 .parts = model.parts,
                 .type = model.type,
                 .path = model.path,
                 .keep_alive = into.env.config.keep_alive};
  // With a group its path may have been told by a member.
  const bool is_label = into.rights.group().has_value();
  const ModelEntry* const there = is_label ? nullptr : into.models.by_path(model.path);
  const ModelEntry* const owner = there != nullptr ? there : into.models.by_name(model.name);
  ModelChange change{.why = Why::kAdopted};
  if (owner != nullptr && !is_label && owner->path == model.path && !model.path.empty()) {
    // Nobody was told of this one; what is known, or newer, has the names.
    if (is_superseded(*owner, model, known)) return;
    ModelEdit lost{.id = owner->id};
    for (ModelEdit::Named& named : into.models.given_to(*owner, model.path)) {
      lost.without.push_back(named.name);
      edit.names.push_back(std::move(named));
    }
    edit.pinned = owner->pinned;
    change.edits.push_back(std::move(lost));
  } else if (!take_name(into, model, model.name, edit)) {
    // Generations are never given twice: this one is free.
    const std::uint64_t generation = model.parts.front()->generation();
    (void)take_name(into, model, with_suffix(model.name, "@g" + std::to_string(generation)), edit);
  }
  if (edit.names.empty()) return;
  change.edits.push_back(std::move(edit));
  into.models.apply(change);
}

// The block of a set's part, whatever it was loaded for.
RamBlock* find_part(const AdoptInto& into, const SetPart& part) {
  const FileIdentity file{part.device, part.inode, part.size, part.mtime_ns, 0};
  for (RamBlock* const block : into.ram.blocks.alike(file)) {
    const bool is_there = !block->draining() && !block->damaged;
    if (is_there && block->source().same_but_ctime(file)) return block;
  }
  return nullptr;
}

// The sets that a block names which the database does not know, the oldest list first; those that are whole.
std::vector<Unnamed> whole_sets(const AdoptInto& into, const Known& known) {
  std::vector<const RamBlock*> naming;
  for (const auto& [id, block] : into.ram.blocks.all()) {
    const bool names = block.block->manifest().set && !block.draining() && !block.damaged && !known.contains(id);
    if (names) naming.push_back(&block);
  }
  std::ranges::sort(naming, {}, &RamBlock::generation);
  std::vector<Unnamed> sets;
  for (const RamBlock* const block : naming) {
    const Manifest& manifest = block->block->manifest();
    Unnamed set{.parts = {}, .is_set = true, .name = manifest.name, .type = manifest.type, .path = manifest.set->id};
    for (const SetPart& part : manifest.set->parts) set.parts.push_back(find_part(into, part));
    const auto same = [&](const Unnamed& other) { return other.parts == set.parts && other.path == set.path; };
    const bool is_whole = std::ranges::find(set.parts, nullptr) == set.parts.end();
    if (is_whole && std::ranges::none_of(sets, same)) sets.push_back(std::move(set));
  }
  return sets;
}

Unnamed alone(RamBlock& block) {
  const Manifest& manifest = block.block->manifest();
  return {.parts = {&block}, .name = manifest.name, .type = manifest.type, .path = block.path()};
}

// What has no name: a part of a set is kept for the next load of it, anything else goes.
void settle_nameless(const AdoptInto& into, Recovered& recovered) {
  for (auto& [id, block] : into.ram.blocks.all()) {
    if (block.draining() || block.models > 0) continue;
    block.is_spare = block.block->manifest().set && !block.damaged;
    if (!block.is_spare) recovered.superseded.push_back(id);
  }
}

}  // namespace

Result<Recovered> adopt_blocks(const AdoptInto& into, const StateRecords& records) {
  Known known;
  for (const BlockRecord& record : records.blocks) known[record.block] = &record;
  for (const RememberedNames::Named& named : records.remembered) into.models.remembered().restore(named);
  Recovered recovered;
  MODELBROKER_TRY(adopt_all(into, known, recovered));
  for (const ModelRecord& record : records.models) adopt_model(into, record, recovered);
  for (const Unnamed& set : whole_sets(into, known)) name_from_manifest(into, set, known);
  std::vector<RamBlock*> nameless;
  for (auto& [id, block] : into.ram.blocks.all()) {
    if (block.draining() && !known.contains(id)) block.damaged = true;  // nobody knows why it was withdrawn
    const bool is_new = !block.draining() && !block.damaged && !known.contains(id);
    if (is_new && !block.block->manifest().set) nameless.push_back(&block);
  }
  std::ranges::sort(nameless, {}, &RamBlock::generation);
  for (RamBlock* const block : nameless) name_from_manifest(into, alone(*block), known);
  settle_nameless(into, recovered);
  for (const auto& [id, record] : known) {
    if (into.ram.blocks.find(id) == nullptr) recovered.blocks.push_back(id);
  }
  for (auto& [id, model] : into.models.all()) into.models.used(model, into.env.clock.now());
  return recovered;
}

}  // namespace modelbroker
