#include "broker/models/registry.h"

#include <algorithm>
#include <array>
#include <cinttypes>
#include <cstdio>
#include <iterator>
#include <numeric>
#include <span>
#include <utility>

#include "broker/models/model_events.h"
#include "broker/models/state_keeper.h"
#include "broker/tier/eviction.h"
#include "shm/block_format.h"

namespace modelbroker {

std::uint64_t ModelEntry::bytes() const {
  return std::accumulate(parts.begin(), parts.end(), std::uint64_t{0},
                         [](std::uint64_t sum, const RamBlock* part) { return sum + part->bytes(); });
}

std::uint64_t ModelEntry::payload_bytes() const {
  return std::accumulate(parts.begin(), parts.end(), std::uint64_t{0},
                         [](std::uint64_t sum, const RamBlock* part) { return sum + part->payload_bytes(); });
}

std::uint64_t ModelEntry::generation() const {
  std::uint64_t highest = 0;
  for (const RamBlock* const part : parts) highest = std::max(highest, part->generation());
  return highest;
}

bool ModelEntry::is_private() const { return std::ranges::any_of(parts, &RamBlock::is_private); }

double ModelEntry::seconds_to_load() const {
  return std::accumulate(parts.begin(), parts.end(), 0.0,
                         [](double sum, const RamBlock* part) { return sum + part->seconds_to_load; });
}

std::vector<RamBlock*> ModelEntry::its_alone() const {
  std::vector<RamBlock*> blocks;
  std::ranges::copy_if(parts, std::back_inserter(blocks), [](const RamBlock* part) { return part->models == 1; });
  return blocks;
}

std::string model_id(const std::vector<RamBlock*>& parts, bool is_set) {
  if (!is_set) return parts.front()->id();
  std::string ids;
  for (const RamBlock* const part : parts) ids += part->id() + "\n";
  std::array<char, 17> hex{};
  (void)std::snprintf(hex.data(), hex.size(), "%016" PRIx64, hash64(std::as_bytes(std::span(ids))));
  return std::string("set.") + hex.data();
}

// ---- finding

ModelEntry* Registry::find_id(const std::string& id) {
  const auto found = models_.find(id);
  return found == models_.end() ? nullptr : &found->second;
}

std::string Registry::id_for(const std::vector<RamBlock*>& parts, bool is_set) {
  std::string id = model_id(parts, is_set);
  for (const ModelEntry* there = find_id(id); there != nullptr && there->parts != parts; there = find_id(id)) id += '+';
  return id;
}

std::vector<ModelEntry*> Registry::with_block(const RamBlock& block) {
  std::vector<ModelEntry*> models;
  const auto found = having_.find(&block);
  if (found == having_.end()) return models;
  for (const std::string& id : found->second) models.push_back(find_id(id));
  return models;
}

ModelEntry* Registry::by_name(std::string_view name) {
  const auto found = names_.find(name);
  return found == names_.end() ? nullptr : find_id(found->second.model);
}

ModelEntry* Registry::by_path(std::string_view path) {
  const auto names = paths_.find(path);
  if (names == paths_.end()) return nullptr;
  ModelEntry* newest = nullptr;
  for (const std::string& name : names->second) {
    ModelEntry* const model = by_name(name);
    if (newest == nullptr || model->generation() > newest->generation()) newest = model;
  }
  return newest;
}

ModelEntry* Registry::find(std::string_view name_or_path) {
  return name_or_path.starts_with('/') ? by_path(name_or_path) : by_name(name_or_path);
}

const GivenName& Registry::given(std::string_view name) const {
  static const GivenName nobodys;
  const auto found = names_.find(name);
  return found == names_.end() ? nobodys : found->second.given;
}

std::vector<ModelEdit::Named> Registry::given_to(const ModelEntry& model, std::string_view path) const {
  std::vector<ModelEdit::Named> names;
  for (const std::string& name : model.names) {
    if (given(name).path == path) names.push_back({name, given(name)});
  }
  return names;
}

void Registry::used(ModelEntry& model, TimePoint now) const {
  model.last_used = now;
  model.value = value_when_used(age_, model.seconds_to_load(), model.bytes());
}

// ---- changing

// ENSURES: the state database gets all of the change, or nothing; who is told of it finds it done.
void Registry::apply(const ModelChange& change, std::function<void()> written) {
  std::vector<std::string> models, blocks;
  std::vector<Changed> changed;
  for (const ModelEdit& edit : change.edits) {
    models.push_back(edit.id);
    const ModelEntry* const known = find_id(edit.id);
    for (const RamBlock* const part : known != nullptr ? known->parts : edit.parts) blocks.push_back(part->id());
    changed.push_back(index(edit, change.why));
  }
  if (observers_.keeper != nullptr) observers_.keeper->save(models, blocks, std::move(written));
  if (observers_.events != nullptr) {
    for (std::size_t i = 0; i < changed.size(); ++i) publish(change, change.edits[i], changed[i]);
  }
  if (!observers_.changed) return;
  for (const std::string& id : models) {
    if (const ModelEntry* const model = find_id(id)) observers_.changed(*model);
  }
}

Registry::Changed Registry::index(const ModelEdit& edit, Why why) {
  Changed changed;
  ModelEntry& model = models_[edit.id];
  if (model.id.empty()) {
    model.id = edit.id;
    model.parts = edit.parts;
    for (RamBlock* const part : model.parts) {
      ++part->models;
      part->is_spare = false;
      having_[part].insert(model.id);
    }
  }
  if (!model.names.empty()) changed.before = event_of(model);
  changed.was_pinned = model.pinned;
  for (const std::string& name : edit.without) {
    if (why == Why::kEvicted || why == Why::kDamaged) remember(model, name);
    changed.lost.push_back({name, given(name)});
    take_name(model, name);
  }
  for (const ModelEdit::Named& named : edit.names) {
    if (!names_.contains(named.name)) changed.gained.push_back(named);
    give_name(model, named);
  }
  if (edit.type) model.type = *edit.type;
  if (edit.path) model.path = *edit.path;
  if (edit.pinned) model.pinned = *edit.pinned;
  if (edit.keep_alive) model.keep_alive = *edit.keep_alive;
  const auto leads_there = [&](const std::string& name) { return given(name).path == model.path; };
  if (!edit.without.empty() && !model.names.empty() && std::ranges::none_of(model.names, leads_there)) {
    model.path = given(model.name()).path;  // no name leads to that file any more: it is the next name's now
  }
  if (!model.is_set() && !model.names.empty()) model.parts.front()->tell_by(model.path);
  changed.ended = model.names.empty();
  if (!changed.ended) return changed;
  for (RamBlock* const part : model.parts) {
    --part->models;
    having_[part].erase(model.id);
    if (part->models == 0) having_.erase(part);
  }
  models_.erase(edit.id);
  return changed;
}

void Registry::remember(const ModelEntry& model, const std::string& name) {
  RememberedNames::Model remembered{
      .given = given(name), .type = model.type, .keep_alive = model.keep_alive, .pinned = model.pinned};
  if (!model.is_set()) remembered.source = model.parts.front()->source();
  remembered_.remember(name, std::move(remembered));
}

void Registry::take_name(ModelEntry& model, const std::string& name) {
  const auto found = names_.find(name);
  if (found == names_.end() || found->second.model != model.id) return;
  unindex_path(name, found->second.given);
  names_.erase(found);
  std::erase(model.names, name);
}

void Registry::give_name(ModelEntry& model, const ModelEdit::Named& named) {
  const auto [entry, is_new] = names_.try_emplace(named.name, Name{model.id, {}});
  if (is_new) {
    model.names.push_back(named.name);
    remembered_.forget(named.name);
  } else {
    unindex_path(named.name, entry->second.given);
  }
  entry->second.given = named.given;
  index_path(named.name, named.given);
}

void Registry::index_path(const std::string& name, const GivenName& given) {
  if (!given.is_label && !given.path.empty()) paths_[given.path].insert(name);
}

void Registry::unindex_path(const std::string& name, const GivenName& given) {
  const auto names = paths_.find(given.path);
  if (names == paths_.end()) return;
  names->second.erase(name);
  if (names->second.empty()) paths_.erase(names);
}

void Registry::publish(const ModelChange& change, const ModelEdit& edit, const Changed& changed) const {
  EventSink& events = *observers_.events;
  if (changed.ended) {
    wire::EventData data = changed.before;
    data.reason = change.event.reason;
    data.chunk = change.event.chunk;
    data.offset = change.event.offset;
    data.outcome = change.event.outcome;
    if (change.why == Why::kUnloaded) events.publish("model.unloaded", data);
    if (change.why == Why::kEvicted) events.publish("model.evicted", data);
    if (change.why == Why::kDamaged) events.publish("model.damaged", data);
    return;
  }
  const ModelEntry& model = models_.at(edit.id);
  wire::EventData data = event_of(model);
  const bool is_load = change.why == Why::kLoaded || change.why == Why::kRevived;
  const bool is_told = is_load && &edit == &change.edits.back();
  if (is_told) {
    data.model = change.told;
    events.publish(change.why == Why::kLoaded ? "model.loaded" : "model.revived", data);
  }
  for (const ModelEdit::Named& named : changed.gained) {
    if (is_told && named.name == change.told) continue;
    data.model = named.name;
    if (!model.is_private()) data.path = named.given.path;
    events.publish("model.alias", data);
  }
  for (const ModelEdit::Named& named : changed.lost) {
    if (change.why != Why::kUnloaded) break;
    wire::EventData lost;
    lost.model = named.name;
    if (!model.is_private()) lost.path = named.given.path;
    events.publish("model.unloaded", lost);
  }
  if (changed.was_pinned != model.pinned) {
    events.publish(model.pinned ? "model.pinned" : "model.unpinned", pin_of(model));
  }
}

}  // namespace modelbroker
