#include "broker/models/model_sources.h"

#include <algorithm>
#include <unordered_map>
#include <utility>

#include "broker/formats/set_index.h"
#include "shm/text.h"

namespace modelbroker {
namespace {

Result<SourcePart> look_at(Os& os, LookOrder order, std::string path, Fd file) {
  SourcePart part{.file = std::move(file), .path = std::move(path), .look = {}};
  order.path = part.path;
  MODELBROKER_ASSIGN(part.look, look_at_source(os, order, part.file));
  return part;
}

// Takes the file of this name out; nothing was handed in but the index: the broker opens it.
Result<Fd> take(std::vector<OfferedSource>& offered, bool has_all, const std::string& name, const std::string& index) {
  const auto found = std::ranges::find(offered, name, &OfferedSource::name);
  if (found != offered.end() && found->file) return std::move(found->file);
  if (!has_all) return Fd();
  return fail(ErrorCode::kNotFound, "'" + index + "' names the file '" + printable(name) +
                                        "', which does not lie beside it: the model is not complete; fetch what is "
                                        "missing and load it again");
}

// Every tensor of the index is in its file, and no tensor is in two.
Result<void> check_tensors(Os& os, const SetIndex& index, const std::vector<SourcePart>& parts,
                           const std::string& label) {
  std::unordered_map<std::string, std::size_t> where;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    MODELBROKER_ASSIGN(const Directory directory, read_directory(os, parts[i].file.get(), printable(parts[i].path)));
    for (const TensorEntry& tensor : directory.tensors) {
      const auto [known, is_new] = where.emplace(tensor.name, i);
      if (is_new) continue;
      return fail(ErrorCode::kDataLoss, "'" + label + "': tensor '" + printable(tensor.name, 80) + "' is in '" +
                                            printable(index.files[known->second]) + "' and in '" +
                                            printable(index.files[i]) + "': these files do not belong to one model");
    }
  }
  for (const auto& [tensor, file] : index.tensors) {
    const auto found = where.find(tensor);
    if (found != where.end() && found->second == file) continue;
    return fail(ErrorCode::kDataLoss, "'" + label + "': tensor '" + printable(tensor, 80) + "' is not in '" +
                                          printable(index.files[file]) +
                                          "', as the index says: fetch index and files again, of one revision");
  }
  return {};
}

Result<ModelSources> look_at_set(Os& os, const LookOrder& order, std::vector<OfferedSource> offered) {
  const bool has_all = !offered.empty() && !offered.front().name.empty();  // handed in with names, as all of a set are
  MODELBROKER_ASSIGN(const SourcePart index,
                     look_at(os, order, order.path, offered.empty() ? Fd() : std::move(offered.front().file)));
  const std::string label = printable(order.path);
  MODELBROKER_ASSIGN(const SetIndex set, read_set_index(os, index.file.get(), label));
  ModelSources sources{.parts = {}, .is_set = true, .is_label = index.look.is_label};
  const std::string folder = order.path.substr(0, order.path.rfind('/') + 1);
  for (const std::string& name : set.files) {
    MODELBROKER_ASSIGN(Fd file, take(offered, has_all, name, label));
    MODELBROKER_ASSIGN(SourcePart part, look_at(os, order, folder + name, std::move(file)));
    sources.parts.push_back(std::move(part));
  }
  MODELBROKER_TRY(check_tensors(os, set, sources.parts, label));
  return sources;
}

}  // namespace

Result<ModelSources> look_at_sources(Os& os, const LookOrder& order, std::vector<OfferedSource> offered) {
  if (is_set_index(order.path)) return look_at_set(os, order, std::move(offered));
  if (offered.size() > 1) {
    return fail(ErrorCode::kInvalidArgument, "'" + printable(order.path) +
                                                 "' was handed in with other files: only the index of a sharded model "
                                                 "(*.safetensors.index.json) has files beside it");
  }
  ModelSources sources;
  MODELBROKER_ASSIGN(SourcePart part,
                     look_at(os, order, order.path, offered.empty() ? Fd() : std::move(offered.front().file)));
  sources.is_label = part.look.is_label;
  sources.parts.push_back(std::move(part));
  return sources;
}

}  // namespace modelbroker
