// Naming: which name, path and type a model gets from a load, and whether it is for this peer at all.
//
// It decides and changes nothing: what it decides is a ModelChange, for Registry::apply(). Threads: the loop's.
// Failure: already_exists for a name that another file has, permission_denied for another user's private block.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "broker/base/environment.h"
#include "broker/models/model_rights.h"
#include "broker/ram/ram_store.h"
#include "broker/ram/source_look.h"

namespace modelbroker {

// What a peer wants its model to be called, and what is known of its file.
struct Claim {
  Peer peer;
  std::string path, name, type;      // an empty name: the one it has, else default_name()
  std::optional<uid_t> name_loader;  // who gave the name, if not the peer
  std::uint64_t asked = 0;           // the order in which files were looked at: what a path led to last, counts
  std::vector<Look> files;           // of its parts
  bool is_set = false;               // the path is their index's
  bool is_label = false;             // the path, see GivenName
  bool any_name = false;             // a free one, if default_name() is taken
  bool pin = false;
  std::optional<Duration> keep_alive{};
  [[nodiscard]] std::string wanted_name() const;
  [[nodiscard]] bool has_same_files(const Claim& other) const;
  [[nodiscard]] bool may_have_same_files(const Claim& other) const;  // by their sizes and times
  // Whose the name is, or would be.
  [[nodiscard]] uid_t manager() const { return name_loader.value_or(peer.uid); }
};

class Naming {
 public:
  Naming(Environment& env, const Rights& rights, RamStore& ram, Registry& models)
      : env_(env), rights_(rights), ram_(ram), models_(models) {}

  // Refuses a name that another file has, or is about to get, before anything is read. `coming`: claims on other files
  // that are being loaded. `is_compared`: what is alike, and not equal, was found to have other bytes.
  [[nodiscard]] Result<void> check(const Claim& claim, const std::vector<const Claim*>& coming,
                                   bool is_compared = false) const;
  // Whether these blocks, in the order of the files, are for the peer; opens each to the group or closes it as its file
  // was.
  [[nodiscard]] Result<void> allow(const Claim& claim, const std::vector<RamBlock*>& blocks);
  struct Settled {
    std::string id;                       // the model's
    std::string name;                     // by which the model answers to this claim
    Outcome outcome;                      // kAlias where it is one name more
    ModelChange change;                   // to be applied
    std::vector<std::string> superseded;  // blocks that no model has then: to be drained once that is written
    std::optional<Error> refused;         // it is named, but neither pinned nor kept as was wanted
  };
  // `outcome`: how they came to be resident. stale_generation: the path leads elsewhere since.
  [[nodiscard]] Result<Settled> settle(const Claim& claim, const std::vector<RamBlock*>& blocks, Outcome outcome);

 private:
  using Names = std::vector<ModelEdit::Named>;
  [[nodiscard]] ModelEntry* before(const Claim& claim, const ModelEntry* model);
  [[nodiscard]] bool is_outdated(const Claim& claim, const ModelEntry& before) const;
  [[nodiscard]] Names names_of(const ModelEntry* model) const;
  [[nodiscard]] Result<std::string> new_name(const Claim& claim, const std::vector<RamBlock*>& blocks,
                                             const ModelEntry* model, const ModelEntry* before);
  void take_over(const Claim& claim, const ModelEntry& before, ModelEdit& own, Settled& settled) const;
  // No `owner`: somebody else's remembered model has it.
  [[nodiscard]] Error taken(const std::string& name, const ModelEntry* owner, uid_t asker) const;
  [[nodiscard]] bool is_managed(const Claim& claim, const RememberedNames::Model& remembered) const;
  [[nodiscard]] bool is_kept_for_another(const Claim& claim, const std::string& name) const;
  [[nodiscard]] bool is_resident(const Claim& claim, bool is_compared) const;
  [[nodiscard]] GivenName given_by(const Claim& claim, const std::string& name) const;
  void keep_as_remembered(const Claim& claim, const std::string& name, ModelEdit& own) const;
  void learn_paths(const Claim& claim, const std::string& name, bool is_new, Names& names) const;
  void settle_privacy(const Claim& claim, const Look& look, RamBlock& block);

  Environment& env_;
  const Rights& rights_;
  RamStore& ram_;
  Registry& models_;
};

}  // namespace modelbroker
