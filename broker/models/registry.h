// Registry: which models there are, what they are called, and of which blocks they are made.
//
// A model is an ordered list of parts, a part one source file, whose bytes stand in a block that other models may
// share. It is resident while it has a name. What was evicted or damaged is remembered by its names: an attach by one
// loads the file again (remembered_names.h). apply() is the only way in which a model changes: it indexes, persists,
// publishes and wakes who observes, in this order. Nobody else assigns a model's fields. Threads: the loop's only. No
// failure: who calls has asked whether it may be.
#pragma once

#include <sys/types.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "broker/base/clock.h"
#include "broker/base/event_sink.h"
#include "broker/models/given_name.h"
#include "broker/models/remembered_names.h"
#include "broker/ram/ram_blocks.h"
#include "wire/messages.h"

namespace modelbroker {

class StateKeeper;

struct ModelEntry {
  std::string id;                  // see model_id()
  std::vector<RamBlock*> parts;    // in the order of its files
  std::vector<std::string> names;  // the first is the model's; never empty
  std::string type;
  std::string path;  // its source as it was last named; each name has one of its own, see GivenName
  bool pinned = false;
  Duration keep_alive{-1};  // after its last use, see Expiry; below zero: for ever
  TimePoint last_used{};    // this and what follows changes by use alone, see Registry::used()
  double value = 0;         // see eviction.h
  bool was_leased = false;  // by this broker

  [[nodiscard]] const std::string& name() const { return names.front(); }
  // Its files are listed by an index, and its path is that one's.
  [[nodiscard]] bool is_set() const { return id != parts.front()->id(); }
  [[nodiscard]] std::uint64_t bytes() const;
  [[nodiscard]] std::uint64_t payload_bytes() const;
  [[nodiscard]] std::uint64_t generation() const;  // the highest
  [[nodiscard]] bool is_private() const;           // the group cannot read one of its files
  [[nodiscard]] double seconds_to_load() const;
  [[nodiscard]] std::vector<RamBlock*> its_alone() const;  // the blocks that no other model has
};

// That of its block, or of a set's blocks together: the same for the same bytes.
[[nodiscard]] std::string model_id(const std::vector<RamBlock*>& parts, bool is_set);

// What changes of one model; what is left out stays.
struct ModelEdit {
  struct Named {
    std::string name;
    GivenName given;
  };
  std::string id;
  std::vector<RamBlock*> parts{};      // of one that is made by it
  std::vector<Named> names{};          // that it gets, or has, and what is known of them
  std::vector<std::string> without{};  // names that it loses; without any it ends
  std::optional<std::string> type{}, path{};
  std::optional<bool> pinned{};
  std::optional<Duration> keep_alive{};
};

enum class Why : std::uint8_t {
  kNamed,     // a resident model is called, pinned or kept otherwise
  kLoaded,    // its blocks were read just now
  kRevived,   // they drained, and were wanted again
  kUnloaded,  // somebody took names away
  kEvicted,   // room was needed, or keep_alive is over: its names are remembered
  kDamaged,   // its bytes are not what was loaded: likewise
  kAdopted,   // an earlier broker's: only indexed
};

struct ModelChange {
  Why why = Why::kNamed;
  std::vector<ModelEdit> edits{};  // one that loses a name comes before the one that gets it
  std::string told{};              // the name by which events tell of a load
  wire::EventData event{};         // of an end: what the event says beside the model
};

class Registry {
 public:
  using Models = std::map<std::string, ModelEntry>;  // by id

  Registry() = default;
  Registry(const Registry&) = delete;
  Registry& operator=(const Registry&) = delete;

  // Until then changes are only indexed. `changed` is called with each model that an edit left resident.
  struct Observers {
    StateKeeper* keeper = nullptr;
    EventSink* events = nullptr;
    std::function<void(const ModelEntry&)> changed;
  };
  // Gives back those before.
  Observers observe(Observers observers) { return std::exchange(observers_, std::move(observers)); }

  // `written` runs when it is in the state database, or could not be: an answer that must survive a crash waits for it.
  void apply(const ModelChange& change, std::function<void()> written = {});
  // A model was loaded, attached or let go.
  void used(ModelEntry& model, TimePoint now) const;
  // One of this value was evicted: see eviction.h.
  void age(double value) { age_ = std::max(age_, value); }

  [[nodiscard]] const Models& all() const noexcept { return models_; }
  [[nodiscard]] Models& all() noexcept { return models_; }
  [[nodiscard]] ModelEntry* find_id(const std::string& id);
  // model_id(), unless other blocks have the same hash.
  [[nodiscard]] std::string id_for(const std::vector<RamBlock*>& parts, bool is_set);
  // Those that have it, with others or alone.
  [[nodiscard]] std::vector<ModelEntry*> with_block(const RamBlock& block);
  [[nodiscard]] ModelEntry* by_name(std::string_view name);
  // The newest of which a name was given to the file at that path, which is not only a label.
  [[nodiscard]] ModelEntry* by_path(std::string_view path);
  // By name, or by path if it begins with '/'.
  [[nodiscard]] ModelEntry* find(std::string_view name_or_path);
  // Nobody's for a name that no model has.
  [[nodiscard]] const GivenName& given(std::string_view name) const;
  // Those of its names that were given to the file at this path.
  [[nodiscard]] std::vector<ModelEdit::Named> given_to(const ModelEntry& model, std::string_view path) const;
  [[nodiscard]] uid_t loader_of(std::string_view name) const { return given(name).loader; }

  [[nodiscard]] const RememberedNames& remembered() const noexcept { return remembered_; }
  [[nodiscard]] RememberedNames& remembered() noexcept { return remembered_; }

 private:
  struct Name {
    std::string model;
    GivenName given;
  };
  using Names = std::map<std::string, Name, std::less<>>;
  struct Changed {
    std::vector<ModelEdit::Named> gained;  // names that it did not have
    std::vector<ModelEdit::Named> lost;
    bool was_pinned = false, ended = false;
    wire::EventData before;  // an ended model, as events tell of it
  };
  Changed index(const ModelEdit& edit, Why why);
  void remember(const ModelEntry& model, const std::string& name);
  void take_name(ModelEntry& model, const std::string& name);
  void give_name(ModelEntry& model, const ModelEdit::Named& named);
  void index_path(const std::string& name, const GivenName& given);
  void unindex_path(const std::string& name, const GivenName& given);
  void publish(const ModelChange& change, const ModelEdit& edit, const Changed& changed) const;

  Models models_;
  Names names_;
  std::map<std::string, std::set<std::string>, std::less<>> paths_;  // the names that were given to each
  std::map<const RamBlock*, std::set<std::string>> having_;          // the ids of models, by their blocks
  RememberedNames remembered_;
  double age_ = 0;
  Observers observers_;
};

}  // namespace modelbroker
