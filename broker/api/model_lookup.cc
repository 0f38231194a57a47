#include "broker/api/model_lookup.h"

#include "broker/models/model_rights.h"
#include "shm/text.h"

namespace modelbroker {

Result<ModelEntry*> find_model(const Rights& rights, Registry& models, const Session& session,
                               const std::string& model) {
  const uid_t uid = session.peer.uid;
  if (model.empty()) return fail(ErrorCode::kInvalidArgument, "field 'model' must name a model");
  ModelEntry* const found = models.find(model);
  // Whether another's private file is loaded, its path does not tell.
  if (found != nullptr && (!is_path(model) || may_attach(rights, uid, *found))) return found;
  return fail(ErrorCode::kNotFound, "no model '" + printable(model) +
                                        "' is loaded: 'modelbroker ls' shows those that are, 'modelbroker load "
                                        "FILE --name NAME' loads one");
}

Result<ModelEntry*> find_own_model(const Rights& rights, Registry& models, const Session& session,
                                   const std::string& model) {
  MODELBROKER_ASSIGN(ModelEntry* const found, find_model(rights, models, session, model));
  const uid_t uid = session.peer.uid;
  if (!is_path(model) && !rights.manage(uid, models.loader_of(model))) {
    return tl::unexpected(Rights::not_manageable(printable(model), models.loader_of(model)));
  }
  if (is_path(model) && !manages_all(rights, models, uid, *found)) {
    return tl::unexpected(Rights::not_manageable(printable(model), found->parts.front()->loader));
  }
  return found;
}

Result<Loading::Ask> ask_for_files(TimePoint now, Session& session, const std::string& path, const std::string& file,
                                   const std::vector<wire::OfferedFile>& files) {
  Loading::Ask ask;
  ask.session = session.id;
  ask.peer = session.peer;
  ask.path = path;
  if (!file.empty() && !files.empty()) {
    return fail(ErrorCode::kInvalidArgument, "'file' and 'files' exclude each other: put all files into 'files'");
  }
  const auto take = [&](const std::string& handle, std::string name) -> Result<void> {
    MODELBROKER_ASSIGN(Fd taken, Sessions::take_offer(session, handle, now));
    ask.files.push_back({std::move(taken), std::move(name)});
    return {};
  };
  if (!file.empty()) MODELBROKER_TRY(take(file, ""));
  for (const wire::OfferedFile& each : files) MODELBROKER_TRY(take(each.file, each.name));
  if (!is_path(path) || path.size() > 4096 || path.find('\0') != std::string::npos) {
    return fail(ErrorCode::kInvalidArgument,
                "the path '" + printable(path) + "' must be absolute and at most 4096 bytes long");
  }
  return ask;
}

}  // namespace modelbroker
