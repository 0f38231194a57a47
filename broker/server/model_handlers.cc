// Requests about models: load, unload, list, get, pin, unpin, cancel, scrub.
#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>

#include "broker/base/log.h"
#include "broker/base/sizes.h"
#include "broker/models/model_events.h"
#include "broker/server/server.h"
#include "shm/text.h"

namespace modelbroker {
namespace {

constexpr double kMebibyte = 1 << 20;
// A holder that was just killed takes this long to be gone; who unloads right after it wants to see the bytes free.
constexpr std::chrono::milliseconds kUnloadPatience{500};

double seconds_between(TimePoint from, TimePoint to) { return std::chrono::duration<double>(to - from).count(); }

// Unix seconds of what lies so far ahead. Only shown: a clock that jumps moves no expiry.
double wall_clock_seconds(Duration ahead) {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch() + ahead).count();
}

// One without a name drains as soon as its file can be renamed.
bool is_withdrawn(const Resident& resident) { return resident.draining() || resident.names.empty(); }

}  // namespace

Result<Resident*> Server::require(const Session& session, const std::string& model) {
  const uid_t uid = session.peer.uid;
  if (model.empty()) return fail(ErrorCode::kInvalidArgument, "field 'model' must name a model");
  Resident* const resident = books_->store.find(model);
  // Whether another's private file is loaded, its path does not tell.
  if (resident != nullptr && (!is_path(model) || books_->may_attach(uid, *resident))) return resident;
  return fail(ErrorCode::kNotFound, "no model '" + printable(model) +
                                        "' is loaded: 'modelbroker ls' shows those that are, 'modelbroker load "
                                        "FILE --name NAME' loads one");
}

Result<Loads::Ask> Server::ask_for(Session& session, const std::string& path, const std::string& file) {
  Loads::Ask ask;
  ask.session = session.id;
  ask.peer = session.peer;
  ask.path = path;
  if (!file.empty()) {
    MODELBROKER_ASSIGN(ask.file, Sessions::take_offer(session, file, books_->clock.now()));
  }
  if (!is_path(path) || path.size() > 4096 || path.find('\0') != std::string::npos) {
    return fail(ErrorCode::kInvalidArgument,
                "the path '" + printable(path) + "' must be absolute and at most 4096 bytes long");
  }
  return ask;
}

void Server::load(Session& session, const wire::LoadModel& data, const Reply<wire::LoadModelReply>& reply) {
  auto ask = ask_for(session, data.path, data.file);
  if (!ask) return reply.error(ask.error());
  if (!data.name.empty() && !valid_model_name(data.name)) {
    return reply.error({ErrorCode::kInvalidArgument,
                        "the name '" + printable(data.name) +
                            "' must have 1 to 255 bytes of UTF-8, no control, invisible or direction-changing "
                            "characters, and no empty, '.' or '..' part before or behind a '/', which belongs to a "
                            "path: choose another by --name"});
  }
  ask->name = data.name;
  ask->type = printable(data.type, 64);
  ask->pin = data.pin;
  ask->retry = data.retry;
  if (data.keep_alive && std::isnan(*data.keep_alive)) {
    return reply.error({ErrorCode::kInvalidArgument, "keep_alive must be a number of seconds; below zero: for ever"});
  }
  if (data.keep_alive) ask->keep_alive = keep_alive_from_seconds(*data.keep_alive);
  ask->until = reply.deadline();
  const TimePoint began = books_->clock.now();
  const Loads::AskId asked = loads_->start(std::move(*ask), [this, reply, began](Result<Loads::Outcome> outcome) {
    if (!outcome) return reply.error(outcome.error());
    const Resident* const resident = books_->store.by_block(outcome->block);
    if (resident == nullptr) {
      return reply.error({ErrorCode::kUnavailable, "the model was unloaded before this request could use it; retry"});
    }
    const Block& block = *resident->block;
    wire::LoadModelReply loaded;
    loaded.model = outcome->model;
    loaded.block = outcome->block;
    loaded.generation = block.name().generation;
    loaded.bytes = resident->bytes();
    loaded.payload_bytes = block.header().layout.payload.size;
    loaded.page_kind = to_string(block.page_kind());
    loaded.outcome = outcome->outcome;
    loaded.seconds = seconds_between(began, books_->clock.now());
    reply.ok(loaded);
  });
  reply.on_late([this, asked] { loads_->give_up(asked); });
}

// A name is its loader's to withdraw; a path stands for all names.
Result<Resident*> Server::require_own(const Session& session, const std::string& model) {
  MODELBROKER_ASSIGN(Resident* const resident, require(session, model));
  const uid_t uid = session.peer.uid;
  if (!is_path(model) && !books_->rights.manage(uid, books_->store.loader_of(model))) {
    return tl::unexpected(Rights::not_manageable(printable(model), books_->store.loader_of(model)));
  }
  if (is_path(model) && !books_->manages_all(uid, *resident)) {
    return tl::unexpected(Rights::not_manageable(printable(model), resident->loader));
  }
  return resident;
}

// Names, or names of the file at a path, that only eviction or damage took away; whether there was one.
Result<bool> Server::forget_evicted(const Session& session, const std::string& model) {
  const auto is_managed = [&](const std::string& name) {
    return books_->rights.manage(session.peer.uid, books_->evicted.find(name)->given.loader);
  };
  std::vector<std::string> names{model};
  if (is_path(model)) {
    names = books_->evicted.at_path(model);
    std::erase_if(names, [&](const std::string& name) { return !is_managed(name); });
  } else if (books_->evicted.find(model) == nullptr) {
    return false;
  } else if (!is_managed(model)) {
    return tl::unexpected(Rights::not_manageable(printable(model), books_->evicted.find(model)->given.loader));
  }
  forget(names);
  return !names.empty();
}

// Nothing that is under way brings them back.
void Server::forget(const std::vector<std::string>& names) {
  for (const std::string& name : names) {
    books_->evicted.forget(name);
    loads_->unloaded(name);
  }
}

// A path: the names that were given to the file there; other files with the same bytes have names of their own.
std::vector<std::string> Server::names_meant(const Resident& resident, const std::string& model) const {
  if (!is_path(model)) return {model};
  std::vector<std::string> names;
  std::ranges::copy_if(resident.names, std::back_inserter(names),
                       [&](const std::string& name) { return books_->store.given(name).path == model; });
  return names;
}

void Server::unload(Session& session, const wire::UnloadModel& data, const Reply<wire::UnloadModelReply>& reply) {
  const std::string& model = data.model.empty() ? data.name : data.model;
  if (books_->store.find(model) == nullptr) {
    const auto forgotten = forget_evicted(session, model);
    if (!forgotten) return reply.error(forgotten.error());
    if (*forgotten) {  // its bytes are free already
      wire::UnloadModelReply outcome;
      outcome.model = model;
      return keeper_->save_evicted([reply, outcome] { reply.ok(outcome); });
    }
  }
  const auto found = require_own(session, model);
  if (!found) return reply.error(found.error());
  Resident& resident = **found;
  const std::vector<std::string> names = names_meant(resident, model);
  forget(names);
  wire::UnloadModelReply outcome;
  outcome.model = names.front();
  if (names.size() < resident.names.size()) {
    for (const std::string& name : names) {
      wire::EventData withdrawn;
      withdrawn.model = name;
      if (!resident.is_private) withdrawn.path = books_->store.given(name).path;
      books_->store.remove_name(resident, name);
      events_->publish("model.unloaded", withdrawn);
    }
    outcome.remaining_names = resident.names;
    return keeper_->save(resident, [reply, outcome] { reply.ok(outcome); });
  }
  const std::string block = resident.block->id();
  const std::uint64_t bytes = resident.bytes();
  log_info("unloading '" + printable(model) + "'");
  const auto drained = [this, reply, outcome, block, bytes, wait = data.wait](bool freed) {
    const auto answer = [this, reply, bytes](wire::UnloadModelReply result, bool gone) {
      (gone ? result.freed : result.draining) = bytes;
      // A name whose end was not written would be back after a crash.
      keeper_->when_written([reply, result] { reply.ok(result); });
    };
    if (freed) return answer(outcome, true);
    const auto told = std::make_shared<bool>(false);
    reaper_->when_gone(block, [answer, outcome, reply, told](bool gone) {
      if (std::exchange(*told, true)) return;
      if (gone) return answer(outcome, true);
      reply.error({ErrorCode::kCancelled, "'" + printable(outcome.model) + "' was loaded again meanwhile"});
    });
    if (wait) return;
    loop_->after(kUnloadPatience, [answer, outcome, told] {
      if (!std::exchange(*told, true)) answer(outcome, false);
    });
  };
  if (const auto withdrawn = reaper_->drain(resident, drained, "model.unloaded"); !withdrawn) {
    reply.error(withdrawn.error());
  }
}

// `uid`: whoever asks. Where another's private file lies is not told.
wire::ModelInfo Server::describe(const Resident& resident, uid_t uid) const {
  const Block& block = *resident.block;
  wire::ModelInfo info;
  info.name = resident.name();
  if (resident.names.size() > 1) info.aliases.assign(resident.names.begin() + 1, resident.names.end());
  info.type = resident.type;
  info.format = block.manifest().format;
  if (books_->may_attach(uid, resident)) info.path = resident.path;
  info.state = is_withdrawn(resident) ? "draining" : "resident";
  info.block = block.id();
  info.block_path = block.path();
  info.generation = block.name().generation;
  info.bytes = resident.bytes();
  info.payload_bytes = info.loaded_bytes = block.header().layout.payload.size;
  info.tensors = block.manifest().tensors.size();
  info.page_kind = to_string(block.page_kind());
  info.pinned = resident.pinned;
  info.keep_alive = resident.keep_alive < Duration(0) ? -1 : std::chrono::duration<double>(resident.keep_alive).count();
  if (const auto end = expires_at(*books_, resident)) info.expires_at = wall_clock_seconds(*end - books_->clock.now());
  const TimePoint now = books_->clock.now();
  for (const LeaseBook::Holder& holder : books_->leases.holders(block.id())) {
    const auto age = std::chrono::duration_cast<std::chrono::milliseconds>(now - holder.since).count();
    info.leases.push_back(
        {static_cast<std::uint64_t>(holder.peer.pid), holder.peer.uid, holder.number, static_cast<std::uint64_t>(age)});
  }
  return info;
}

void Server::list(Session& session, const wire::Empty&, const Reply<wire::ModelListReply>& reply) {
  when_settled([this, reply, uid = session.peer.uid] { reply.ok(list_models(uid)); });
}

wire::ModelListReply Server::list_models(uid_t uid) const {
  wire::ModelListReply list;
  for (const auto& [id, resident] : books_->store.all()) {
    (is_withdrawn(resident) ? list.draining : list.models).push_back(describe(resident, uid));
  }
  for (const Loads::Running& running : loads_->running()) {
    wire::ModelInfo info;
    info.name = running.name;
    if (!running.is_private || books_->rights.manage(uid, running.uid)) info.path = running.path;
    info.type = running.type;
    info.state = "loading";
    info.payload_bytes = running.progress->total_bytes;
    info.loaded_bytes = running.progress->read_bytes;
    list.models.push_back(std::move(info));
  }
  std::ranges::sort(list.models, {}, &wire::ModelInfo::name);
  return list;
}

void Server::get(Session& session, const wire::ModelName& data, const Reply<wire::ModelGetReply>& reply) {
  when_settled([this, id = session.id, model = data.model, reply] {
    const Session* const asker = books_->sessions.find(id);
    if (asker == nullptr) return reply.error({ErrorCode::kCancelled, "the session that asked has ended"});
    const auto resident = require(*asker, model);
    if (!resident) return reply.error(resident.error());
    reply.ok({describe(**resident, asker->peer.uid)});
  });
}

void Server::set_pinned(const Session& session, const std::string& model, bool pinned,
                        const Reply<wire::PinReply>& reply) {
  const auto resident = require_own(session, model);
  if (!resident) return reply.error(resident.error());
  if (std::exchange((*resident)->pinned, pinned) != pinned) {
    events_->publish(pinned ? "model.pinned" : "model.unpinned", pin_of(**resident));
  }
  expiry_->changed(**resident);
  admission_->look_again();
  keeper_->save(**resident, [reply, name = (*resident)->name(), pinned] { reply.ok({name, pinned}); });
}

void Server::pin(Session& session, const wire::ModelName& data, const Reply<wire::PinReply>& reply) {
  set_pinned(session, data.model, true, reply);
}

void Server::unpin(Session& session, const wire::ModelName& data, const Reply<wire::PinReply>& reply) {
  set_pinned(session, data.model, false, reply);
}

void Server::cancel(Session& session, const wire::ModelName& data, const Reply<wire::CancelReply>& reply) {
  const bool everybodys = books_->rights.everything(session.peer.uid);
  const std::size_t count =
      loads_->cancel(data.model, everybodys ? std::nullopt : std::optional<uid_t>(session.peer.uid));
  if (count > 0) return reply.ok({count});
  reply.error({ErrorCode::kNotFound, "nothing that is called '" + printable(data.model) +
                                         "' is being loaded: 'modelbroker ps' shows what is"});
}

void Server::scrub(Session& session, const wire::Scrub& data, const Reply<wire::ScrubReply>& reply) {
  if (!books_->rights.everything(session.peer.uid)) {
    return reply.error({ErrorCode::kPermissionDenied, "only the broker's user and root may scrub"});
  }
  Scrubber::Ask ask;
  ask.session = session.id;
  if (data.model.empty()) {
    for (const auto& [id, resident] : books_->store.all()) ask.blocks.push_back(id);
  } else {
    const auto resident = require(session, data.model);
    if (!resident) return reply.error(resident.error());
    ask.blocks.push_back((*resident)->block->id());
  }
  ask.wanted = [reply] { return !reply.answered(); };
  ask.done = [reply](const Result<wire::ScrubReply>& found) { found ? reply.ok(*found) : reply.error(found.error()); };
  scrubber_->check(std::move(ask));
}

void Server::get_model_info(Session& session, const wire::GetModelInfo& data,
                            const Reply<wire::GetModelInfoReply>& reply) {
  const Resident* wanted = nullptr;
  if (!data.name.empty()) {
    const auto found = require(session, data.name);
    if (!found) return reply.error(found.error());
    wanted = *found;
  }
  wire::GetModelInfoReply info;
  for (const auto& [id, resident] : books_->store.all()) {
    if (resident.draining() || (wanted != nullptr && &resident != wanted)) continue;
    const bool shown = books_->may_attach(session.peer.uid, resident);
    info.loaded_models[resident.name()] = {shown ? resident.path : "", resident.type,
                                           static_cast<double>(resident.bytes()) / kMebibyte,
                                           resident.block->name().generation};
  }
  const Budget::Use use = books_->use();
  info.memory_usage_mb = static_cast<double>(use.made + use.draining) / kMebibyte;
  info.available_memory_mb = static_cast<double>(books_->budget.available(use)) / kMebibyte;
  info.model_count = info.loaded_models.size();
  reply.ok(info);
}

}  // namespace modelbroker
