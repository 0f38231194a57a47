// RememberedNames: what evicted and damaged models were called: an attach by such a name loads the file again.
//
// Bounded: past kMost the name that was evicted first is forgotten, of those whose loader has the most here: nobody
// pushes out another's by evicting many of his own. The state database has them too: what has changed here goes there
// with the next write, so that a name stands in one place at any time, also after a crash. Threads: the broker's only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "broker/base/clock.h"
#include "broker/models/given_name.h"
#include "shm/manifest.h"

namespace modelbroker {

class RememberedNames {
 public:
  static constexpr std::size_t kMost = 10000;
  struct Model {
    GivenName given;
    std::string type;
    Duration keep_alive{-1};
    bool pinned = false;
    std::optional<FileIdentity> source{};  // what its block held, where that is known
  };
  struct Named {
    std::string name;
    std::uint64_t position = 0;  // in the order of eviction
    Model model;
  };
  struct Changes {
    std::vector<Named> remembered;
    std::vector<std::string> forgotten;
  };

  void remember(const std::string& name, Model model);
  void forget(std::string_view name);
  // Of a name that is here: how its model is kept when it is loaded again.
  void pin(std::string_view name, bool pinned);
  void clear();
  [[nodiscard]] const Model* find(std::string_view name) const;
  // The names of the file at that path, which is not only a label.
  [[nodiscard]] std::vector<std::string> at_path(std::string_view path) const;
  // In the order of eviction.
  [[nodiscard]] std::vector<Named> all() const;

  // As an earlier broker wrote it: that is no change.
  void restore(Named named);
  // Since they were taken last.
  [[nodiscard]] Changes take_changes();

 private:
  struct Entry {
    std::uint64_t position = 0;
    Model model;
  };
  void insert(const std::string& name, Entry entry);
  void forget_one();

  std::map<std::string, Entry, std::less<>> models_;
  std::map<std::uint64_t, std::string> order_;                  // the same names, by position
  std::map<std::uint32_t, std::set<std::uint64_t>> of_loader_;  // their positions
  std::set<std::string, std::less<>> changed_;
  std::uint64_t last_ = 0;  // position
};

}  // namespace modelbroker
