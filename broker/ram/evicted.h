// EvictedNames: what evicted models were called, so that who attaches one by name gets it loaded again.
//
// Bounded: past kMost the name that was evicted first is forgotten. Not kept over a restart. Threads: the broker's
// only.
#pragma once

#include <cstddef>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "broker/clock.h"
#include "broker/ram/given_name.h"
#include "shm/manifest.h"

namespace modelbroker {

class EvictedNames {
 public:
  static constexpr std::size_t kMost = 10000;
  struct Model {
    GivenName given;
    std::string type;
    Duration keep_alive{-1};
    bool pinned = false;
    std::optional<FileIdentity> only{};  // it must still be this file
  };

  void remember(const std::string& name, Model model);
  void forget(std::string_view name);
  [[nodiscard]] const Model* find(std::string_view name) const;
  // The names of the file at that path.
  [[nodiscard]] std::vector<std::string> at_path(std::string_view path) const;
  [[nodiscard]] std::size_t size() const noexcept { return models_.size(); }

 private:
  std::map<std::string, Model, std::less<>> models_;
  std::deque<std::string> order_;  // the same names, oldest first
};

}  // namespace modelbroker
