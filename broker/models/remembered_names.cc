#include "broker/models/remembered_names.h"

#include <algorithm>
#include <utility>

namespace modelbroker {

void RememberedNames::insert(const std::string& name, Entry entry) {
  last_ = std::max(last_, entry.position);
  order_.emplace(entry.position, name);
  of_loader_[entry.model.given.loader].insert(entry.position);
  models_.emplace(name, std::move(entry));
}

void RememberedNames::remember(const std::string& name, Model model) {
  forget(name);
  insert(name, {last_ + 1, std::move(model)});
  changed_.insert(name);
  while (models_.size() > kMost) forget_one();
}

void RememberedNames::forget_one() {
  const auto most = std::ranges::max_element(of_loader_, {}, [](const auto& each) { return each.second.size(); });
  forget(std::string(order_.at(*most->second.begin())));
}

void RememberedNames::forget(std::string_view name) {
  const auto found = models_.find(name);
  if (found == models_.end()) return;
  changed_.insert(found->first);
  const auto of_loader = of_loader_.find(found->second.model.given.loader);
  of_loader->second.erase(found->second.position);
  if (of_loader->second.empty()) of_loader_.erase(of_loader);
  order_.erase(found->second.position);
  models_.erase(found);
}

void RememberedNames::pin(std::string_view name, bool pinned) {
  const auto found = models_.find(name);
  found->second.model.pinned = pinned;
  changed_.insert(found->first);
}

void RememberedNames::clear() {
  for (const auto& [name, entry] : models_) changed_.insert(name);
  models_.clear();
  order_.clear();
  of_loader_.clear();
}

std::vector<std::string> RememberedNames::at_path(std::string_view path) const {
  std::vector<std::string> names;
  for (const auto& [name, entry] : models_) {
    if (entry.model.given.path == path && !entry.model.given.is_label) names.push_back(name);
  }
  return names;
}

const RememberedNames::Model* RememberedNames::find(std::string_view name) const {
  const auto found = models_.find(name);
  return found == models_.end() ? nullptr : &found->second.model;
}

std::vector<RememberedNames::Named> RememberedNames::all() const {
  std::vector<Named> list;
  list.reserve(order_.size());
  for (const auto& [position, name] : order_) list.push_back({name, position, models_.find(name)->second.model});
  return list;
}

void RememberedNames::restore(Named named) {
  if (models_.contains(named.name)) return;
  if (order_.contains(named.position)) named.position = last_ + 1;
  insert(named.name, {named.position, std::move(named.model)});
}

RememberedNames::Changes RememberedNames::take_changes() {
  Changes changes;
  for (const std::string& name : std::exchange(changed_, {})) {
    const auto found = models_.find(name);
    if (found == models_.end()) {
      changes.forgotten.push_back(name);
    } else {
      changes.remembered.push_back({name, found->second.position, found->second.model});
    }
  }
  return changes;
}

}  // namespace modelbroker
