#include "unpickle/torch_zip.h"

#include <algorithm>
#include <map>
#include <string>
#include <utility>

#include "shm/text.h"
#include "unpickle/bounds.h"
#include "unpickle/flatten.h"
#include "unpickle/interpreter.h"
#include "unpickle/zip_directory.h"

namespace modelbroker::unpickle {
namespace {

constexpr std::size_t kShownName = 80;

std::string shown(std::string_view name) { return "'" + printable(name, kShownName) + "'"; }

// The records of one archive, by their names below its root folder.
class Records {
 public:
  [[nodiscard]] static Result<Records> of(const ByteSource& source);

  [[nodiscard]] const ZipEntry* find(std::string_view name) const;
  [[nodiscard]] bool has_folder(std::string_view prefix) const;

 private:
  std::vector<ZipEntry> entries_;
  std::map<std::string_view, const ZipEntry*> by_name_;
};

Result<Records> Records::of(const ByteSource& source) {
  Records records;
  MODELBROKER_ASSIGN(records.entries_, read_zip_directory(source));
  std::string_view root;
  for (const ZipEntry& entry : records.entries_) {
    const std::string_view name = entry.name;
    const std::size_t slash = name.find('/');
    if (slash == std::string_view::npos || slash == 0) {
      return fail(ErrorCode::kInvalidArgument,
                  "it is a zip archive but not of torch: " + shown(name) + " lies outside a root folder");
    }
    if (root.empty()) root = name.substr(0, slash);
    if (name.substr(0, slash) != root) {
      return fail(ErrorCode::kDataLoss,
                  "its zip archive has two roots, " + shown(root) + " and " + shown(name.substr(0, slash)));
    }
    records.by_name_.emplace(name.substr(slash + 1), &entry);
  }
  return records;
}

const ZipEntry* Records::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : found->second;
}

bool Records::has_folder(std::string_view prefix) const {
  const auto found = by_name_.lower_bound(prefix);
  return found != by_name_.end() && found->first.starts_with(prefix);
}

Result<void> check_kind(const ByteSource& source, const Records& records) {
  if (records.find("constants.pkl") != nullptr || records.has_folder("code/")) {
    return fail(ErrorCode::kUnimplemented,
                "it is a TorchScript archive: load it with torch.jit.load and torch.save(module.state_dict(), ...)");
  }
  if (records.find("data.pkl") == nullptr) {
    return fail(ErrorCode::kInvalidArgument, "it is a zip archive but not of torch: it has no data.pkl");
  }
  const ZipEntry* order = records.find("byteorder");
  if (order == nullptr) return {};
  if (order->size > kMaxSmallRecordBytes) return fail(ErrorCode::kDataLoss, "its byte order is not a word");
  MODELBROKER_ASSIGN(const auto word, source.read(order->offset, order->size));
  if (text_of(word) == "little") return {};
  return fail(ErrorCode::kUnimplemented,
              "its byte order is " + shown(text_of(word)) + ": load it with torch on this machine and save it again");
}

Result<TorchTensor> in_file(const Records& records, NamedTensor& tensor) {
  const auto refuse = [&](std::string_view why) {
    return fail(ErrorCode::kDataLoss,
                "tensor " + shown(tensor.name) + ": its storage " + shown(tensor.storage) + " " + std::string(why));
  };
  const ZipEntry* record = records.find("data/" + std::string(tensor.storage));
  if (record == nullptr) return refuse("is not in the file");
  if (tensor.storage_bytes > record->size) return refuse("is longer than its record");
  Placement& placement = tensor.placement;
  return TorchTensor{std::move(tensor.name),
                     tensor.dtype->word,
                     std::move(placement.shape),
                     std::move(placement.strides),
                     record->offset + placement.offset,
                     placement.size};
}

}  // namespace

Result<TorchFile> read_torch_zip(const ByteSource& source) {
  MODELBROKER_ASSIGN(const Records records, Records::of(source));
  MODELBROKER_TRY(check_kind(source, records));
  const ZipEntry& pickle = *records.find("data.pkl");
  if (pickle.size > kMaxPickleBytes) return fail(ErrorCode::kUnimplemented, "its pickle is larger than is read");
  MODELBROKER_ASSIGN(const auto bytes, source.read(pickle.offset, pickle.size));
  Heap heap;
  Interpreter interpreter(bytes, heap);
  MODELBROKER_ASSIGN(const Id root, interpreter.run());
  if (interpreter.consumed() != bytes.size()) return fail(ErrorCode::kDataLoss, "its pickle has more behind its end");
  MODELBROKER_ASSIGN(Flattened flat, flatten(heap, root));
  TorchFile file{.format = "torch_zip",
                 .wrapper = std::move(flat.wrapper),
                 .values = std::move(flat.values),
                 .values_left_out = flat.values_left_out,
                 .left_out = flat.left_out};
  for (NamedTensor& tensor : flat.tensors) {
    MODELBROKER_ASSIGN(TorchTensor placed, in_file(records, tensor));
    file.tensors.push_back(std::move(placed));
  }
  file.placeholders.assign(interpreter.placeholders().begin(), interpreter.placeholders().end());
  return file;
}

}  // namespace modelbroker::unpickle
