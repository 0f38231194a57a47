#include "broker/models/loading.h"

#include <algorithm>
#include <set>
#include <utility>

#include "broker/base/log.h"
#include "shm/instruments.h"
#include "shm/text.h"
#include "shm/threads.h"

namespace modelbroker {
namespace {

// Of a model whose blocks came to be here in different ways.
Outcome outcome_of(const std::vector<BlockLoads::Got>& gots) {
  return std::ranges::max_element(gots, {}, &BlockLoads::Got::how)->how;
}

// For the manifests of a set's blocks.
std::optional<BlockSet> set_of(const Claim& claim, const ModelSources& sources) {
  if (!sources.is_set) return std::nullopt;
  BlockSet set{.id = claim.path, .index = 0, .parts = {}};
  for (const SourcePart& part : sources.parts) {
    const FileIdentity& source = part.look.source;
    set.parts.push_back(
        {part.path.substr(part.path.rfind('/') + 1), source.device, source.inode, source.size, source.mtime_ns});
  }
  return set;
}

}  // namespace

Loading::AskId Loading::start(Ask ask, Done done) {
  const auto waiter = std::make_shared<Waiter>();
  waiter->id = next_id_++;
  waiter->session = ask.session;
  waiter->lease = ask.lease;
  waiter->peer = std::move(ask.peer);
  waiter->path = std::move(ask.path);
  waiter->name = std::move(ask.name);
  waiter->type = std::move(ask.type);
  waiter->pin = ask.pin;
  waiter->retry = ask.retry;
  waiter->any_name = ask.any_name;
  waiter->look_only = ask.look_only;
  waiter->keep_alive = ask.keep_alive;
  waiter->until = ask.until;
  waiter->name_loader = ask.name_loader;
  waiter->done = std::move(done);
  waiters_.push_back(waiter);
  LookOrder order{waiter->peer, waiter->path, rights_.everything(waiter->peer.uid), rights_.group(),
                  env_.config.model_folders};
  auto files = std::make_shared<std::vector<OfferedSource>>(std::move(ask.files));
  Jobs& jobs = blocks_.jobs_of(waiter->peer.uid);
  const auto looked = [this, waiter](Result<ModelSources> sources) { identified(waiter, std::move(sources)); };
  if (jobs.has_thread()) {
    jobs.run(
        [os = &env_.os, order = std::move(order), files] { return look_at_sources(*os, order, std::move(*files)); },
        looked);
  } else {  // the loop must read no file itself
    loop_.post([looked] { looked(tl::unexpected(no_thread_left("the broker cannot read the file"))); });
  }
  return waiter->id;
}

void Loading::identified(const WaiterPtr& waiter, Result<ModelSources> sources) {
  if (std::ranges::find(waiters_, waiter) == waiters_.end()) return;  // withdrawn meanwhile
  const auto refuse = [&](Error error) {
    std::erase(waiters_, waiter);
    waiter->done(tl::unexpected(std::move(error)));
  };
  if (!sources) return refuse(sources.error());
  waiter->asked = ++looks_;
  waiter->is_label = sources->is_label;
  waiter->is_set = sources->is_set;
  for (const SourcePart& part : sources->parts) waiter->files.push_back(part.look);
  if (auto free = naming_.check(*waiter, coming_beside(*waiter)); !free) return refuse(free.error());
  if (const auto gots = resident(sources->parts)) {
    ++env_.counters.hits;
    std::erase(waiters_, waiter);
    finish(*waiter, *gots);
    return drain_unwanted(*gots);
  }
  if (waiter->look_only) {
    return refuse({ErrorCode::kNotFound,
                   "'" + printable(waiter->path) +
                       "' is not resident, and an attach with 'load: false' loads nothing: load it with 'modelbroker "
                       "load FILE', or attach without 'load: false'"});
  }
  ++env_.counters.misses;
  if (auto harmless = check_harmless(*waiter, sources->parts); !harmless) return refuse(harmless.error());
  load(waiter, std::move(*sources));
}

std::optional<Loading::Gots> Loading::resident(const std::vector<SourcePart>& parts) {
  Gots gots;
  for (const SourcePart& part : parts) {
    const BlockLoads::Got got = blocks_.usable(part.look.source);
    if (got.block == nullptr) {
      drain_unwanted(gots);
      return std::nullopt;
    }
    gots.push_back(got);
  }
  return gots;
}

// What was revived for a model that did not come to be.
void Loading::drain_unwanted(const Gots& gots) {
  for (const BlockLoads::Got& got : gots) reaper_.drain_unwanted(*got.block);
}

Result<void> Loading::check_harmless(const Waiter& waiter, const std::vector<SourcePart>& parts) {
  for (const SourcePart& part : parts) {
    if (waiter.retry || blocks_.is_under_way(part.look.source)) continue;
    MODELBROKER_TRY(notes_.check({part.look.source, part.path, part.look.is_label}));
  }
  return {};
}

void Loading::load(const WaiterPtr& waiter, ModelSources sources) {
  BlockLoads::Ask ask;
  ask.uid = waiter->peer.uid;
  ask.until = waiter->until;
  ask.model = waiter->wanted_name();
  ask.path = waiter->path;
  const std::optional<BlockSet> set = set_of(*waiter, sources);
  for (SourcePart& part : sources.parts) {
    LoadIdentity identity{waiter->wanted_name(), waiter->type, part.path, printable(part.path), set};
    if (set) identity.set->index = ask.wants.size();
    ask.wants.push_back({.file = std::move(part.file),
                         .look = part.look,
                         .identity = std::move(identity),
                         .loader = loader_of(*waiter)});
  }
  ask.may_have = [this, waiter](const RamBlock& block) { return may_attach(rights_, waiter->peer.uid, block); };
  ask.may_load = [this, waiter] { return naming_.check(*waiter, coming_before(*waiter), true); };
  ask.done = [this, waiter](BlockLoads::Done outcome) { loaded(waiter, std::move(outcome)); };
  waiter->loading = blocks_.want(std::move(ask));
}

// Who loaded it before it was evicted or damaged, if it is the same file.
uid_t Loading::loader_of(const Waiter& waiter) const {
  if (!waiter.name_loader) return waiter.peer.uid;
  const RememberedNames::Model* const known = models_.remembered().find(waiter.name);
  if (known == nullptr) return waiter.peer.uid;
  const bool is_same = waiter.is_set ? known->given.path == waiter.path
                                     : known->source && known->source->same_but_ctime(waiter.files.front().source);
  return is_same ? *waiter.name_loader : waiter.peer.uid;
}

void Loading::loaded(const WaiterPtr& waiter, BlockLoads::Done outcome) {
  std::erase(waiters_, waiter);
  if (!outcome.blocks) return waiter->done(tl::unexpected(outcome.blocks.error()));
  const std::string wanted = waiter->wanted_name();
  const auto name = finish(*waiter, *outcome.blocks);
  if (!outcome.is_told || outcome_of(*outcome.blocks) != Outcome::kLoaded || name == wanted) return;
  wire::EventData data;  // by that name it is not there
  data.model = wanted;
  if (std::ranges::none_of(waiter->files, &Look::is_private)) data.path = waiter->path;
  data.reason = name ? "cancelled: it got another name" : "cancelled: nobody could have it";
  events_.publish("model.load_failed", data);
}

std::vector<const Claim*> Loading::coming_beside(const Waiter& waiter) const {
  std::vector<const Claim*> claims;
  for (const WaiterPtr& other : waiters_) {
    // One that is alike may be the same file: it is looked at again when that is known.
    if (other->loading && !other->may_have_same_files(waiter)) claims.push_back(other.get());
  }
  return claims;
}

std::vector<const Claim*> Loading::coming_before(const Waiter& waiter) const {
  std::vector<const Claim*> claims;
  for (const WaiterPtr& other : waiters_) {
    if (other.get() == &waiter) break;
    if (other->loading && !other->has_same_files(waiter)) claims.push_back(other.get());
  }
  return claims;
}

// Answered when it is written: what was acknowledged survives a crash. A block that has lost its names drains then, and
// not before: a death in between would lose them.
std::optional<std::string> Loading::finish(const Waiter& waiter, const Gots& gots) {
  const auto refuse = [&waiter](Error error) {
    waiter.done(tl::unexpected(std::move(error)));
    return std::nullopt;
  };
  std::vector<RamBlock*> blocks;
  for (const BlockLoads::Got& got : gots) blocks.push_back(got.block);
  if (auto allowed = naming_.allow(waiter, blocks); !allowed) return refuse(allowed.error());
  const auto settled = naming_.settle(waiter, blocks, outcome_of(gots));
  if (!settled) return refuse(settled.error());
  std::vector<std::string> own;
  own.reserve(blocks.size());
  for (const RamBlock* const block : blocks) own.push_back(block->id());
  for (const std::string& id : settled->superseded) ++ram_.blocks.find(id)->promised;
  for (const std::string& id : own) ++ram_.blocks.find(id)->promised;
  Result<Answer> answer = Answer{settled->id, settled->name, settled->outcome};
  if (settled->refused) answer = tl::unexpected(*settled->refused);
  models_.apply(settled->change,
                [this, done = waiter.done, answer = std::move(answer), superseded = settled->superseded, own] {
                  crash_point("load.written");
                  for (const std::string& id : superseded) keep_promise(id);
                  done(answer);
                  for (const std::string& id : own) keep_promise(id);
                  admission_.look_again();
                });
  models_.used(*models_.find_id(settled->id), env_.clock.now());
  return settled->name;
}

void Loading::keep_promise(const std::string& id) {
  RamBlock* const block = ram_.blocks.find(id);
  if (block == nullptr || --block->promised > 0) return;
  reaper_.drain_unwanted(*block);
  for (const ModelEntry* const model : models_.with_block(*block)) expiry_.changed(tier_.expires_at(*model));
}

// Takes waiters out, and tells them why.
template <class Predicate>
std::size_t Loading::withdraw(Predicate whose, const std::optional<Error>& error) {
  std::vector<WaiterPtr> out;
  std::erase_if(waiters_, [&](const WaiterPtr& waiter) {
    if (whose(*waiter)) out.push_back(waiter);
    return !out.empty() && out.back() == waiter;
  });
  for (const WaiterPtr& waiter : out) {
    if (waiter->loading) blocks_.give_up(*waiter->loading);
    if (error) waiter->done(tl::unexpected(*error));
  }
  return out.size();
}

Error Loading::lease_detached(std::uint64_t lease) {
  return {ErrorCode::kCancelled, "the lease " + std::to_string(lease) + " was detached before it was granted"};
}

void Loading::give_up(AskId id) {
  withdraw([&](const Waiter& waiter) { return waiter.id == id; }, std::nullopt);
}

void Loading::detached(SessionId session, std::uint64_t lease) {
  withdraw([&](const Waiter& waiter) { return waiter.session == session && waiter.lease == lease; },
           lease_detached(lease));
}

void Loading::session_ended(SessionId session) {
  withdraw([&](const Waiter& waiter) { return waiter.session == session; },
           Error{ErrorCode::kCancelled, "the session that asked for the load has ended"});
}

void Loading::unloaded(const std::string& name) {
  withdraw([&](const Waiter& waiter) { return waiter.name_loader && waiter.name == name; },
           Error{ErrorCode::kCancelled, "'" + printable(name) + "' was unloaded meanwhile"});
}

bool Loading::waits(SessionId session) const {
  return std::ranges::any_of(waiters_, [&](const WaiterPtr& waiter) { return waiter->session == session; });
}

// Whoever waits for the same files under another name waits for the same load.
std::size_t Loading::cancel(const std::string& model, std::optional<uid_t> uid) {
  const auto is_meant = [&](const Waiter& waiter) { return waiter.wanted_name() == model || waiter.path == model; };
  std::vector<WaiterPtr> meant;
  for (const WaiterPtr& waiter : waiters_) {
    if (!waiter->files.empty() && is_meant(*waiter)) meant.push_back(waiter);
  }
  return withdraw(
      [&](const Waiter& waiter) {
        const auto shares = [&](const WaiterPtr& other) { return waiter.has_same_files(*other); };
        return (!uid || waiter.peer.uid == *uid) && (is_meant(waiter) || std::ranges::any_of(meant, shares));
      },
      Error{ErrorCode::kCancelled, "the load of '" + printable(model) + "' was cancelled"});
}

}  // namespace modelbroker
