#include <algorithm>

#include "shm/text.h"
#include "unpickle/bounds.h"
#include "unpickle/flatten.h"
#include "unpickle/json.h"

namespace modelbroker::unpickle {
namespace {

// Writes what is plain; what is not, and containers that hold nothing plain, leave no trace.
class Writer {
 public:
  explicit Writer(const Heap& heap) noexcept : heap_(heap), out_(kMaxMetadataBytes) {}

  [[nodiscard]] bool value(Id id, std::size_t depth);
  // Past its limits the whole text is given up.
  [[nodiscard]] bool gave_up() const { return out_.overflowed() || visits_ > kMaxVisits; }
  [[nodiscard]] std::string& text() { return out_.text(); }

 private:
  [[nodiscard]] bool dictionary(Id id, std::size_t depth);
  [[nodiscard]] bool sequence(Id id, std::size_t depth);
  [[nodiscard]] bool object(Id id, std::size_t depth);
  [[nodiscard]] bool key(Id id);

  const Heap& heap_;
  JsonText out_;
  std::size_t visits_ = 0;
};

bool Writer::value(Id id, std::size_t depth) {
  if (depth > kMaxNesting || ++visits_ > kMaxVisits || out_.overflowed()) return false;
  const Value& value = heap_[id];
  switch (value.kind) {
    case Kind::kNone:
      out_.raw("null");
      return true;
    case Kind::kBool:
      out_.raw(value.number != 0 ? "true" : "false");
      return true;
    case Kind::kInt:
      out_.number(value.number);
      return true;
    case Kind::kFloat:
      out_.number(value.real);
      return true;
    case Kind::kString:
      if (!valid_utf8(value.text)) return false;
      out_.string(value.text);
      return true;
    case Kind::kTuple:
    case Kind::kList:
    case Kind::kSet:
      return sequence(id, depth);
    case Kind::kDict:
      return dictionary(id, depth);
    case Kind::kObject:
      return object(id, depth);
    default:
      return false;
  }
}

bool Writer::key(Id id) {
  const Value& key = heap_[id];
  if (key.kind == Kind::kInt) {
    out_.string(std::to_string(key.number));
    return true;
  }
  if (key.kind != Kind::kString || !valid_utf8(key.text)) return false;
  out_.string(key.text);
  return true;
}

bool Writer::dictionary(Id id, std::size_t depth) {
  const auto items = heap_.children(id);
  const std::size_t begin = out_.size();
  bool any = items.empty();
  out_.raw("{");
  for (std::size_t i = 0; i + 1 < items.size(); i += 2) {
    if (depth == 0 && of_trainer(heap_, items[i], items[i + 1])) continue;
    const std::size_t before = out_.size();
    if (before > begin + 1) out_.raw(",");
    bool written = key(items[i]);
    if (written) out_.raw(":");
    written = written && value(items[i + 1], depth + 1);
    if (!written) out_.cut(before);
    any |= written;
  }
  out_.raw("}");
  if (!any) out_.cut(begin);
  return any;
}

bool Writer::sequence(Id id, std::size_t depth) {
  const auto items = heap_.children(id);
  const std::size_t begin = out_.size();
  bool any = items.empty();
  out_.raw("[");
  for (const Id item : items) {
    if (out_.size() > begin + 1) out_.raw(",");
    const bool written = value(item, depth + 1);
    if (!written) out_.raw("null");  // keeps the others' places
    any |= written;
  }
  out_.raw("]");
  if (!any) out_.cut(begin);
  return any;
}

// Paths are their text, a namespace its attributes, a device its name.
bool Writer::object(Id id, std::size_t depth) {
  const std::string_view type = heap_[id].text;
  const auto parts = heap_.children(id);
  if (parts.empty()) return false;
  if (type == "argparse.Namespace") return heap_[parts.back()].kind == Kind::kDict && value(parts.back(), depth + 1);
  if (type == "torch.device") return value(parts.front(), depth + 1);
  if (!type.starts_with("pathlib.")) return false;
  std::string path;
  for (const Id part : parts) {
    if (heap_[part].kind != Kind::kString || !valid_utf8(heap_[part].text)) return false;
    if (path.size() + heap_[part].text.size() > kMaxMetadataBytes) return false;
    if (!path.empty() && !path.ends_with('/')) path += '/';
    path += heap_[part].text;
  }
  out_.string(path);
  return true;
}

}  // namespace

std::string plain_values(const Heap& heap, Id root) {
  if (heap[root].kind != Kind::kDict) return "{}";
  Writer writer(heap);
  const bool any = writer.value(root, 0);
  if (writer.gave_up()) return {};
  return any ? std::move(writer.text()) : "{}";
}

}  // namespace modelbroker::unpickle
