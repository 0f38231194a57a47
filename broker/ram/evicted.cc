#include "broker/ram/evicted.h"

#include <algorithm>
#include <utility>

namespace modelbroker {

void EvictedNames::remember(const std::string& name, Model model) {
  if (models_.insert_or_assign(name, std::move(model)).second) order_.push_back(name);
  while (models_.size() > kMost) {
    models_.erase(order_.front());
    order_.pop_front();
  }
}

void EvictedNames::forget(std::string_view name) {
  const auto found = models_.find(name);
  if (found == models_.end()) return;
  models_.erase(found);
  std::erase(order_, name);
}

std::vector<std::string> EvictedNames::at_path(std::string_view path) const {
  std::vector<std::string> names;
  for (const auto& [name, model] : models_) {
    if (model.given.path == path) names.push_back(name);
  }
  return names;
}

const EvictedNames::Model* EvictedNames::find(std::string_view name) const {
  const auto found = models_.find(name);
  return found == models_.end() ? nullptr : &found->second;
}

}  // namespace modelbroker
