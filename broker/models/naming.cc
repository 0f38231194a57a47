#include "broker/models/naming.h"

#include <algorithm>

#include "broker/base/log.h"
#include "broker/models/default_name.h"
#include "shm/text.h"

namespace modelbroker {

std::string Claim::wanted_name() const { return name.empty() ? default_name(path) : name; }

bool Claim::has_same_files(const Claim& other) const {
  return is_set == other.is_set && std::ranges::equal(files, other.files, {}, &Look::source, &Look::source);
}

bool Claim::may_have_same_files(const Claim& other) const {
  const auto is_alike = [](const Look& one, const Look& two) { return one.source.alike(two.source); };
  return is_set == other.is_set && std::ranges::equal(files, other.files, is_alike);
}

namespace {

// Whether the model is of these files; `is_compared`: what is alike, and not equal, has other bytes.
bool is_of_files(const ModelEntry& model, const Claim& claim, bool is_compared) {
  return model.is_set() == claim.is_set &&
         std::ranges::equal(model.parts, claim.files, [&](const RamBlock* block, const Look& file) {
           return block->holds(file.source) || (!is_compared && block->source().alike(file.source));
         });
}

// By a path that is not the one that the model is told by.
bool is_copy(const Claim& claim, const std::vector<RamBlock*>& blocks, const ModelEntry* model) {
  return claim.is_set ? model != nullptr && model->path != claim.path : blocks.front()->is_copy(claim.path);
}

Error name_taken(const std::string& name, const std::string& owner) {
  return {ErrorCode::kAlreadyExists, "the name '" + printable(name) + "' belongs to " + owner +
                                         ": use --name to choose another, or unload it first"};
}

std::string file_at(const std::string& path, bool shown) {
  return shown ? "'" + printable(path) + "'" : "another user's file";
}

// What tells models of other bytes apart.
std::string digest_of(const std::vector<RamBlock*>& blocks, bool is_set) {
  return is_set ? model_id(blocks, true).substr(std::string_view("set.").size())
                : blocks.front()->block->name().digest16;
}

// The first of the names that was given to the file at this path.
std::string name_at(const std::string& path, const std::vector<ModelEdit::Named>& names) {
  const auto found = std::ranges::find(names, path, [](const ModelEdit::Named& named) { return named.given.path; });
  return found == names.end() ? "" : found->name;
}

}  // namespace

Error Naming::taken(const std::string& name, const ModelEntry* owner, uid_t asker) const {
  if (owner == nullptr) return name_taken(name, "another user's model, which is remembered");
  return name_taken(name, file_at(models_.given(name).path, may_attach(rights_, asker, *owner)));
}

bool Naming::is_managed(const Claim& claim, const RememberedNames::Model& remembered) const {
  return rights_.manage(claim.manager(), remembered.given.loader);
}

// The evicted model of somebody else, and not of this file: its name is not given away while it has no block.
bool Naming::is_kept_for_another(const Claim& claim, const std::string& name) const {
  const RememberedNames::Model* const remembered = models_.remembered().find(name);
  if (remembered == nullptr || is_managed(claim, *remembered)) return false;
  if (remembered->source && !claim.is_set) {
    return !remembered->source->same_but_ctime(claim.files.front().source);
  }
  return remembered->given.path != claim.path || claim.is_label;
}

// Under whatever name; as far as it was compared.
bool Naming::is_resident(const Claim& claim, bool is_compared) const {
  const FileIdentity& first = claim.files.front().source;
  if (!claim.is_set) {
    return ram_.blocks.by_source(first) != nullptr || (!is_compared && !ram_.blocks.alike(first).empty());
  }
  for (const RamBlock* const block : ram_.blocks.alike(first)) {
    for (const ModelEntry* const model : models_.with_block(*block)) {
      if (is_of_files(*model, claim, is_compared)) return true;
    }
  }
  return false;
}

Result<void> Naming::check(const Claim& claim, const std::vector<const Claim*>& coming, bool is_compared) const {
  if (claim.any_name) return {};
  const std::string name = claim.wanted_name();
  const uid_t uid = claim.peer.uid;
  const ModelEntry* const owner = models_.by_name(name);
  const bool same_path =
      owner != nullptr && models_.given(name).path == claim.path && manages(rights_, models_, uid, *owner, claim.path);
  const bool is_another = owner != nullptr && !same_path && !is_of_files(*owner, claim, is_compared);
  const bool is_kept = owner == nullptr && is_kept_for_another(claim, name);
  if (is_another || is_kept) {
    // What is resident under other names needs no name of its own.
    if (claim.name.empty() && is_resident(claim, is_compared)) return {};
    return tl::unexpected(taken(name, owner, uid));
  }
  for (const Claim* const other : coming) {
    const bool managed = rights_.manage(uid, other->peer.uid);
    const bool same = other->path == claim.path && managed;
    if (other->wanted_name() == name && !same) return tl::unexpected(name_taken(name, file_at(other->path, managed)));
  }
  return {};
}

Result<void> Naming::allow(const Claim& claim, const std::vector<RamBlock*>& blocks) {
  for (const RamBlock* const block : blocks) {
    if (may_attach(rights_, claim.peer.uid, *block)) continue;
    return tl::unexpected(Rights::not_attachable(printable(claim.wanted_name())));
  }
  for (std::size_t i = 0; i < blocks.size(); ++i) settle_privacy(claim, claim.files[i], *blocks[i]);
  return {};
}

// The file's owner may have opened it to the group since, or closed it.
void Naming::settle_privacy(const Claim& claim, const Look& look, RamBlock& held) {
  const auto group = rights_.group();
  if (!group || look.is_private == held.is_private) return;
  const uid_t uid = claim.peer.uid;
  if (look.is_private && !rights_.everything(uid) && uid != held.source_uid && uid != held.loader) {
    return;  // found by another way to the file, through a folder of this user's own
  }
  Block& block = *held.block;
  const auto done = look.is_private ? block.take_from_group(env_.os) : block.give_to_group(env_.os, *group);
  if (!done) return log_warning(done.error().message);
  held.is_private = look.is_private;
}

// The model that this path led to before; with a label, that of the wanted name, if it was given with the same label.
ModelEntry* Naming::before(const Claim& claim, const ModelEntry* model) {
  const std::string name = claim.wanted_name();
  const GivenName& given = models_.given(name);
  ModelEntry* found = nullptr;
  if (!claim.is_label) {
    found = models_.by_path(claim.path);
  } else if (given.is_label && given.path == claim.path) {
    found = models_.by_name(name);
  }
  const bool is_ours =
      found != nullptr && found != model && manages(rights_, models_, claim.peer.uid, *found, claim.path);
  return is_ours ? found : nullptr;
}

// Who came later found another file there, and has got it already.
bool Naming::is_outdated(const Claim& claim, const ModelEntry& before) const {
  return std::ranges::any_of(before.names, [&](const std::string& name) {
    const GivenName& given = models_.given(name);
    return given.path == claim.path && given.asked > claim.asked;
  });
}

Naming::Names Naming::names_of(const ModelEntry* model) const {
  Names names;
  if (model == nullptr) return names;
  for (const std::string& name : model->names) names.push_back({name, models_.given(name)});
  return names;
}

// Empty: what it is called already, or will be called when it takes over, is enough.
Result<std::string> Naming::new_name(const Claim& claim, const std::vector<RamBlock*>& blocks, const ModelEntry* model,
                                     const ModelEntry* before) {
  const bool has_names = model != nullptr || before != nullptr;
  // A copy of the file is called by its own name too, if that is free.
  const Names names = names_of(model);
  const bool is_new_copy = is_copy(claim, blocks, model) && name_at(claim.path, names).empty();
  if (claim.name.empty() && has_names && !is_new_copy) return {};
  std::string name = claim.wanted_name();
  const auto is_free = [&] {
    const ModelEntry* const owner = models_.by_name(name);
    if (owner == nullptr) return !is_kept_for_another(claim, name);
    return owner == model || (owner == before && models_.given(name).path == claim.path);
  };
  if (claim.name.empty() && has_names && !is_free()) return {};
  if (claim.any_name && !is_free()) {
    const std::string base = name, digest = "@" + digest_of(blocks, claim.is_set);
    name = with_suffix(base, digest);
    // Other files of this name and these bytes may have that one too.
    for (unsigned number = 2; !is_free(); ++number) name = with_suffix(base, digest + "-" + std::to_string(number));
  }
  if (!is_free()) return tl::unexpected(taken(name, models_.by_name(name), claim.peer.uid));
  return name;
}

// Names follow the file: what this path was called before, its new generation is called now, and is kept as that was.
void Naming::take_over(const Claim& claim, const ModelEntry& before, ModelEdit& own, Settled& settled) const {
  const bool is_new = own.names.empty();
  if (is_new) {
    own.type = before.type;
    own.keep_alive = before.keep_alive;
  }
  if (before.pinned) own.pinned = true;
  ModelEdit lost{.id = before.id};
  for (ModelEdit::Named& named : models_.given_to(before, claim.path)) {
    lost.without.push_back(named.name);
    own.names.push_back(std::move(named));
  }
  if (lost.without.size() == before.names.size()) {
    for (const RamBlock* const block : before.its_alone()) settled.superseded.push_back(block->id());
  }
  settled.change.edits.push_back(std::move(lost));
}

// Loaded by hand or attached: what was evicted, or lost with its block, is kept as it was.
void Naming::keep_as_remembered(const Claim& claim, const std::string& name, ModelEdit& own) const {
  const RememberedNames::Model* const remembered = models_.remembered().find(name);
  if (remembered == nullptr) return;
  if (is_managed(claim, *remembered) && remembered->given.path != claim.path) return;  // its owner means another file
  own.type = remembered->type;
  own.keep_alive = remembered->keep_alive;
  own.pinned = remembered->pinned;
}

// A name stays whose it was: also when somebody else loads that file again.
GivenName Naming::given_by(const Claim& claim, const std::string& name) const {
  GivenName given{claim.manager(), claim.path, claim.is_label, claim.asked};
  const RememberedNames::Model* const remembered = models_.remembered().find(name);
  if (remembered == nullptr) return given;
  if (!is_managed(claim, *remembered)) {
    given = remembered->given;
    given.asked = claim.asked;
  } else if (remembered->given.path == claim.path) {
    given.loader = remembered->given.loader;
  }
  return given;
}

// What this claim says of where the files of these names lie.
void Naming::learn_paths(const Claim& claim, const std::string& name, bool is_new, Names& names) const {
  for (auto& [known, given] : names) {
    const bool is_managed = rights_.manage(claim.peer.uid, given.loader);
    if (known == name && !is_new && !claim.name.empty() && is_managed) {
      // A label takes nothing from a path at which the broker has seen the file.
      const bool is_seen = given.path == claim.path && !given.is_label;
      given.path = claim.path;
      given.is_label = claim.is_label && !is_seen;
    }
    if (given.path != claim.path) continue;
    if (given.is_label && !claim.is_label && is_managed) given.is_label = false;
    given.asked = std::max(given.asked, claim.asked);
  }
}

// ENSURES: applied, the change leaves the model with a name; a name that another model keeps is not in it.
Result<Naming::Settled> Naming::settle(const Claim& claim, const std::vector<RamBlock*>& blocks, Outcome outcome) {
  Settled settled;
  settled.id = models_.id_for(blocks, claim.is_set);
  settled.outcome = outcome;
  ModelEntry* const model = models_.find_id(settled.id);
  ModelEntry* const older = before(claim, model);
  if (older != nullptr && is_outdated(claim, *older)) {
    return fail(ErrorCode::kStaleGeneration,
                "'" + printable(claim.path) + "' is another file since, which is loaded already: load it again");
  }
  MODELBROKER_ASSIGN(const std::string name, new_name(claim, blocks, model, older));
  ModelEdit own{.id = settled.id, .parts = blocks, .names = names_of(model)};
  if (model == nullptr) own.keep_alive = env_.config.keep_alive;
  if (older != nullptr) take_over(claim, *older, own, settled);
  if (model == nullptr || older != nullptr) own.path = claim.path;
  if (model == nullptr && older == nullptr) keep_as_remembered(claim, name, own);
  const auto is_managers = [&](uid_t uid) {
    return std::ranges::any_of(own.names, [&](const auto& each) { return rights_.manage(uid, each.given.loader); });
  };
  if (!claim.type.empty() && (model == nullptr || is_managers(claim.peer.uid))) own.type = claim.type;
  settled.name = name;
  if (name.empty() && is_copy(claim, blocks, model)) settled.name = name_at(claim.path, own.names);
  if (settled.name.empty()) settled.name = own.names.front().name;
  const bool is_new = !name.empty() && std::ranges::find(own.names, name, &ModelEdit::Named::name) == own.names.end();
  if (is_new) own.names.push_back({name, given_by(claim, name)});
  learn_paths(claim, name, is_new, own.names);
  if (is_new && outcome == Outcome::kResident && model != nullptr) settled.outcome = Outcome::kAlias;
  if ((claim.pin || claim.keep_alive) && !is_managers(claim.manager())) {
    settled.refused = Rights::not_manageable(settled.name, own.names.front().given.loader);
  } else {
    if (claim.pin) own.pinned = true;
    if (claim.keep_alive) own.keep_alive = claim.keep_alive;
  }
  const bool is_put_together =
      claim.is_set && model == nullptr && outcome == Outcome::kResident;  // of blocks that were here
  settled.change.why = outcome == Outcome::kLoaded || is_put_together ? Why::kLoaded
                       : outcome == Outcome::kRevived                 ? Why::kRevived
                                                                      : Why::kNamed;
  settled.change.told = settled.name;
  settled.change.edits.push_back(std::move(own));
  return settled;
}

}  // namespace modelbroker
