#include "broker/models/loading.h"

#include <algorithm>
#include <set>
#include <utility>

#include "broker/base/log.h"
#include "broker/models/ram_tier.h"
#include "shm/instruments.h"
#include "shm/text.h"
#include "shm/threads.h"

namespace modelbroker {

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
  LookOrder order{waiter->peer, waiter->path, books_.rights.everything(waiter->peer.uid), books_.rights.group(),
                  books_.config.model_folders};
  auto file = std::make_shared<Fd>(std::move(ask.file));
  Jobs& jobs = blocks_.jobs_of(waiter->peer.uid);
  const auto looked = [this, file, waiter](const Result<Look>& look) { identified(waiter, std::move(*file), look); };
  if (jobs.has_thread()) {
    jobs.run([os = &books_.os, order = std::move(order), file] { return look_at_source(*os, order, *file); }, looked);
  } else {  // the loop must read no file itself
    loop_.post([looked] { looked(tl::unexpected(no_thread_left("the broker cannot read the file"))); });
  }
  return waiter->id;
}

void Loading::identified(const WaiterPtr& waiter, Fd file, const Result<Look>& look) {
  if (std::ranges::find(waiters_, waiter) == waiters_.end()) return;  // withdrawn meanwhile
  const auto refuse = [&](Error error) {
    std::erase(waiters_, waiter);
    waiter->done(tl::unexpected(std::move(error)));
  };
  if (!look) return refuse(look.error());
  waiter->asked = ++looks_;
  waiter->is_label = look->is_label;
  waiter->source_uid = look->uid;
  waiter->is_private = look->is_private;
  const FileIdentity& source = look->source;
  if (auto free = naming_.check(*waiter, source, coming_beside(source)); !free) return refuse(free.error());
  std::string how;
  if (RamBlock* const block = blocks_.usable(source, how)) {
    ++books_.hits;
    std::erase(waiters_, waiter);
    finish(*waiter, *block, how);
    if (block->unwanted()) reaper_.drain(*block);
    return;
  }
  if (waiter->look_only) {
    return refuse({ErrorCode::kNotFound,
                   "'" + printable(waiter->path) +
                       "' is not resident, and an attach with 'load: false' loads nothing: load it with 'modelbroker "
                       "load FILE', or attach without 'load: false'"});
  }
  ++books_.misses;
  if (!blocks_.is_under_way(source)) {
    auto harmless = notes_.check({source, waiter->path, waiter->is_label});
    if (!harmless && !waiter->retry) return refuse(harmless.error());
  }
  load(waiter, std::move(file), *look);
}

void Loading::load(const WaiterPtr& waiter, Fd file, const Look& look) {
  waiter->source = look.source;
  BlockLoads::Ask ask;
  ask.uid = waiter->peer.uid;
  ask.until = waiter->until;
  ask.model = waiter->wanted_name();
  ask.path = waiter->path;
  ask.wants.push_back({.file = std::move(file),
                       .look = look,
                       .identity = {waiter->wanted_name(), waiter->type, waiter->path, printable(waiter->path)},
                       .loader = loader_of(*waiter)});
  ask.may_have = [this, waiter](const RamBlock& block) { return books_.may_attach(waiter->peer.uid, block); };
  ask.may_load = [this, waiter] { return naming_.check(*waiter, *waiter->source, coming_before(*waiter), true); };
  ask.done = [this, waiter](BlockLoads::Done outcome) { loaded(waiter, std::move(outcome)); };
  waiter->loading = blocks_.want(std::move(ask));
}

// Who loaded it before it was evicted or damaged, if it is the same file.
uid_t Loading::loader_of(const Waiter& waiter) const {
  if (!waiter.name_loader) return waiter.peer.uid;
  const RememberedNames::Model* const known = books_.models.remembered().find(waiter.name);
  const bool is_same = known != nullptr && known->source && known->source->same_but_ctime(*waiter.source);
  return is_same ? *waiter.name_loader : waiter.peer.uid;
}

void Loading::loaded(const WaiterPtr& waiter, BlockLoads::Done outcome) {
  std::erase(waiters_, waiter);
  if (!outcome.blocks) return waiter->done(tl::unexpected(outcome.blocks.error()));
  const BlockLoads::Got& got = outcome.blocks->front();
  const std::string wanted = waiter->wanted_name();
  const auto name = finish(*waiter, *got.block, got.how);
  if (!outcome.is_told || got.how != "loaded" || name == wanted) return;
  wire::EventData data;  // by that name it is not there
  data.model = wanted;
  if (!waiter->is_private) data.path = waiter->path;
  data.reason = name ? "cancelled: it got another name" : "cancelled: nobody could have it";
  events_.publish("model.load_failed", data);
}

std::vector<const Claim*> Loading::coming_beside(const FileIdentity& source) const {
  std::vector<const Claim*> claims;
  for (const WaiterPtr& waiter : waiters_) {
    // One that is alike may be the same file: it is looked at again when that is known.
    if (waiter->loading && !waiter->source->alike(source)) claims.push_back(waiter.get());
  }
  return claims;
}

std::vector<const Claim*> Loading::coming_before(const Waiter& before) const {
  std::vector<const Claim*> claims;
  for (const WaiterPtr& waiter : waiters_) {
    if (waiter.get() == &before) break;
    if (waiter->loading && waiter->source != before.source) claims.push_back(waiter.get());
  }
  return claims;
}

// Answered when it is written: what was acknowledged survives a crash. A block that has lost its names drains then, and
// not before: a death in between would lose them.
std::optional<std::string> Loading::finish(const Waiter& waiter, RamBlock& block, const std::string& how) {
  const auto refuse = [&waiter](Error error) {
    waiter.done(tl::unexpected(std::move(error)));
    return std::nullopt;
  };
  if (auto allowed = naming_.allow(waiter, block); !allowed) return refuse(allowed.error());
  const auto settled = naming_.settle(waiter, block, how);
  if (!settled) return refuse(settled.error());
  std::vector<std::string> promised{settled->superseded};
  promised.push_back(block.id());
  for (const std::string& id : promised) ++books_.blocks.find(id)->promised;
  Result<Outcome> answer = Outcome{block.id(), settled->name, settled->outcome};
  if (settled->refused) answer = tl::unexpected(*settled->refused);
  books_.models.apply(settled->change, [this, done = waiter.done, answer = std::move(answer), promised] {
    crash_point("load.written");
    for (auto id = promised.begin(); id + 1 != promised.end(); ++id) keep_promise(*id);
    done(answer);
    keep_promise(promised.back());
    admission_.look_again();
  });
  books_.used(*books_.models.of_block(block));
  return settled->name;
}

void Loading::keep_promise(const std::string& id) {
  RamBlock* const block = books_.blocks.find(id);
  if (block == nullptr || --block->promised > 0) return;
  if (block->unwanted() && !block->draining()) reaper_.drain(*block);
  for (const ModelEntry* const model : books_.models.with_block(*block)) expiry_.changed(expires_at(books_, *model));
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

// Whoever waits for the same file under another name waits for the same load.
std::size_t Loading::cancel(const std::string& model, std::optional<uid_t> uid) {
  const auto is_meant = [&](const Waiter& waiter) { return waiter.wanted_name() == model || waiter.path == model; };
  std::vector<FileIdentity> sources;
  for (const WaiterPtr& waiter : waiters_) {
    if (waiter->source && is_meant(*waiter)) sources.push_back(*waiter->source);
  }
  return withdraw(
      [&](const Waiter& waiter) {
        const bool shares = waiter.source && std::ranges::find(sources, *waiter.source) != sources.end();
        return (!uid || waiter.peer.uid == *uid) && (shares || is_meant(waiter));
      },
      Error{ErrorCode::kCancelled, "the load of '" + printable(model) + "' was cancelled"});
}

}  // namespace modelbroker
