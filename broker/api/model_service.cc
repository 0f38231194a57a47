#include "broker/api/model_service.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "broker/api/model_lookup.h"
#include "broker/base/log.h"
#include "broker/base/sizes.h"
#include "broker/models/model_events.h"
#include "broker/models/model_rights.h"
#include "shm/text.h"

namespace modelbroker {
namespace {

constexpr double kMebibyte = 1 << 20;
// A holder that was just killed takes this long to be gone; who unloads right after it wants to see the bytes free.
constexpr std::chrono::milliseconds kUnloadPatience{500};

double seconds_between(TimePoint from, TimePoint to) { return std::chrono::duration<double>(to - from).count(); }

}  // namespace

void ModelService::load(Session& session, const wire::LoadModel& data, const Reply<wire::LoadModelReply>& reply) {
  auto ask = ask_for_files(env_.clock.now(), session, data.path, data.file, data.files);
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
  const TimePoint began = env_.clock.now();
  const Loading::AskId asked = loading_.start(std::move(*ask), [this, reply, began](Result<Loading::Answer> outcome) {
    if (!outcome) return reply.error(outcome.error());
    const ModelEntry* const model = models_.find_id(outcome->id);
    if (model == nullptr) {
      return reply.error({ErrorCode::kUnavailable, "the model was unloaded before this request could use it; retry"});
    }
    wire::LoadModelReply loaded;
    loaded.model = outcome->model;
    loaded.generation = model->generation();
    loaded.bytes = model->bytes();
    loaded.payload_bytes = model->payload_bytes();
    loaded.blocks = blocks_of(*model, true);
    if (loaded.blocks.size() == 1) {
      loaded.block = loaded.blocks.front().block;
      loaded.page_kind = loaded.blocks.front().page_kind;
    }
    loaded.outcome = to_string(outcome->outcome);
    loaded.seconds = seconds_between(began, env_.clock.now());
    reply.ok(loaded);
  });
  reply.on_late([this, asked] { loading_.give_up(asked); });
}

void ModelService::unload(Session& session, const wire::UnloadModel& data, const Reply<wire::UnloadModelReply>& reply) {
  const std::string& model = data.model.empty() ? data.name : data.model;
  if (models_.find(model) == nullptr) {
    const auto forgotten = forget_remembered(session, model);
    if (!forgotten) return reply.error(forgotten.error());
    if (*forgotten) {  // its bytes are free already
      wire::UnloadModelReply outcome;
      outcome.model = model;
      return keeper_.save({}, {}, [reply, outcome] { reply.ok(outcome); });
    }
  }
  const auto found = find_own_model(workers_.rights, models_, session, model);
  if (!found) return reply.error(found.error());
  const std::vector<std::string> names = names_meant(**found, model);
  forget(names);
  wire::UnloadModelReply outcome;
  outcome.model = names.front();
  if (names.size() < (*found)->names.size()) return take_names(**found, names, std::move(outcome), reply);
  log_info("unloading '" + printable(model) + "'");
  unload_all(**found, data.wait, outcome, reply);
}

// The model has other names, and stays.
void ModelService::take_names(const ModelEntry& model, const std::vector<std::string>& names,
                              wire::UnloadModelReply outcome, const Reply<wire::UnloadModelReply>& reply) {
  outcome.remaining_names = model.names;
  std::erase_if(outcome.remaining_names,
                [&](const std::string& name) { return std::ranges::find(names, name) != names.end(); });
  models_.apply({.why = Why::kUnloaded, .edits = {{.id = model.id, .without = names}}},
                [reply, outcome] { reply.ok(outcome); });
}

// All of its names go, and its blocks drain. Waits a moment for holders that were just killed, or with `wait` for all.
void ModelService::unload_all(ModelEntry& model, bool wait, const wire::UnloadModelReply& outcome,
                              const Reply<wire::UnloadModelReply>& reply) {
  struct Going {
    std::vector<std::string> blocks;
    std::size_t left = 0;
    std::uint64_t bytes = 0, bytes_left = 0;
    bool is_told = false;
  };
  const auto going = std::make_shared<Going>();
  for (const RamBlock* const block : model.its_alone()) {
    going->blocks.push_back(block->id());
    going->bytes += block->bytes();
  }
  going->left = going->blocks.size();
  going->bytes_left = going->bytes;
  const auto answer = [this, reply, going, outcome] {
    if (std::exchange(going->is_told, true)) return;
    wire::UnloadModelReply result = outcome;
    result.freed = going->bytes - going->bytes_left;
    result.draining = going->bytes_left;
    // A name whose end was not written would be back after a crash.
    keeper_.when_written([reply, result] { reply.ok(result); });
  };
  const auto drained = [this, reply, going, answer, wait, name = outcome.model](bool freed) {
    if (freed) {
      going->bytes_left = 0;
      return answer();
    }
    for (const std::string& id : going->blocks) {
      const RamBlock* const block = ram_.blocks.find(id);
      reaper_.when_gone(id, [going, answer, reply, name, bytes = block != nullptr ? block->bytes() : 0](bool gone) {
        if (!gone && !std::exchange(going->is_told, true)) {
          reply.error({ErrorCode::kCancelled, "'" + printable(name) + "' was loaded again meanwhile"});
        }
        going->bytes_left -= bytes;
        if (--going->left == 0) answer();
      });
    }
    if (!wait) loop_.after(kUnloadPatience, answer);
  };
  if (const auto withdrawn = withdrawal_.unload(model, drained); !withdrawn) reply.error(withdrawn.error());
}

// Names, or names of the file at a path, that only eviction or damage took away; whether there was one.
Result<bool> ModelService::forget_remembered(const Session& session, const std::string& model) {
  const auto is_managed = [&](const std::string& name) {
    return workers_.rights.manage(session.peer.uid, models_.remembered().find(name)->given.loader);
  };
  std::vector<std::string> names{model};
  if (is_path(model)) {
    names = models_.remembered().at_path(model);
    std::erase_if(names, [&](const std::string& name) { return !is_managed(name); });
  } else if (models_.remembered().find(model) == nullptr) {
    return false;
  } else if (!is_managed(model)) {
    return tl::unexpected(Rights::not_manageable(printable(model), models_.remembered().find(model)->given.loader));
  }
  forget(names);
  return !names.empty();
}

// Nothing that is under way brings them back.
void ModelService::forget(const std::vector<std::string>& names) {
  for (const std::string& name : names) {
    models_.remembered().forget(name);
    loading_.unloaded(name);
  }
}

// A path: the names that were given to the file there; other files with the same bytes have names of their own.
std::vector<std::string> ModelService::names_meant(const ModelEntry& model, const std::string& asked) const {
  if (!is_path(asked)) return {asked};
  std::vector<std::string> names;
  for (ModelEdit::Named& named : models_.given_to(model, asked)) names.push_back(std::move(named.name));
  return names;
}

void ModelService::cancel(Session& session, const wire::ModelName& data, const Reply<wire::CancelReply>& reply) {
  const bool everybodys = workers_.rights.everything(session.peer.uid);
  const std::size_t count =
      loading_.cancel(data.model, everybodys ? std::nullopt : std::optional<uid_t>(session.peer.uid));
  if (count > 0) return reply.ok({count});
  reply.error({ErrorCode::kNotFound, "nothing that is called '" + printable(data.model) +
                                         "' is being loaded: 'modelbroker ps' shows what is"});
}

void ModelService::list(Session& session, const wire::ModelList& data, const Reply<wire::ModelListReply>& reply) {
  settled_.when([this, reply, uid = session.peer.uid, all = data.all] { reply.ok(views_.list(uid, all)); });
}

void ModelService::get(Session& session, const wire::ModelName& data, const Reply<wire::ModelGetReply>& reply) {
  settled_.when([this, id = session.id, model = data.model, reply] {
    const Session* const asker = workers_.sessions.find(id);
    if (asker == nullptr) return reply.error({ErrorCode::kCancelled, "the session that asked has ended"});
    const auto found = find_model(workers_.rights, models_, *asker, model);
    if (found) return reply.ok({views_.of(**found, asker->peer.uid)});
    const RememberedNames::Model* const remembered = models_.remembered().find(model);
    if (remembered == nullptr) return reply.error(found.error());
    reply.ok({views_.of(model, *remembered, asker->peer.uid)});
  });
}

void ModelService::set_pinned(const Session& session, const std::string& model, bool pinned,
                              const Reply<wire::PinReply>& reply) {
  const RememberedNames::Model* const remembered = models_.remembered().find(model);
  if (remembered != nullptr) {  // how it is kept when it is loaded again
    if (!workers_.rights.manage(session.peer.uid, remembered->given.loader)) {
      return reply.error(Rights::not_manageable(printable(model), remembered->given.loader));
    }
    models_.remembered().pin(model, pinned);
    return keeper_.save({}, {}, [reply, model, pinned] { reply.ok({model, pinned}); });
  }
  const auto found = find_own_model(workers_.rights, models_, session, model);
  if (!found) return reply.error(found.error());
  const std::string name = (*found)->name();
  models_.apply({.edits = {{.id = (*found)->id, .pinned = pinned}}}, [reply, name, pinned] {
    reply.ok({name, pinned});
  });
}

void ModelService::pin(Session& session, const wire::ModelName& data, const Reply<wire::PinReply>& reply) {
  set_pinned(session, data.model, true, reply);
}

void ModelService::unpin(Session& session, const wire::ModelName& data, const Reply<wire::PinReply>& reply) {
  set_pinned(session, data.model, false, reply);
}

void ModelService::get_model_info(Session& session, const wire::GetModelInfo& data,
                                  const Reply<wire::GetModelInfoReply>& reply) {
  const ModelEntry* wanted = nullptr;
  if (!data.name.empty()) {
    const auto found = find_model(workers_.rights, models_, session, data.name);
    if (!found) return reply.error(found.error());
    wanted = *found;
  }
  wire::GetModelInfoReply info;
  for (const auto& [id, model] : models_.all()) {
    if (wanted != nullptr && &model != wanted) continue;
    const bool shown = may_attach(workers_.rights, session.peer.uid, model);
    info.loaded_models[model.name()] = {shown ? model.path : "", model.type,
                                        static_cast<double>(model.bytes()) / kMebibyte, model.generation()};
  }
  const Budget::Use use = tier_.use();
  info.memory_usage_mb = static_cast<double>(use.made + use.draining) / kMebibyte;
  info.available_memory_mb = static_cast<double>(ram_.budget.available(use)) / kMebibyte;
  info.model_count = info.loaded_models.size();
  reply.ok(info);
}

}  // namespace modelbroker
