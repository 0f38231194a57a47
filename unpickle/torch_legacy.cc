#include "unpickle/torch_legacy.h"

#include <algorithm>
#include <map>
#include <span>
#include <string>
#include <utility>

#include "shm/manifest.h"
#include "shm/text.h"
#include "unpickle/bounds.h"
#include "unpickle/flatten.h"
#include "unpickle/interpreter.h"

namespace modelbroker::unpickle {
namespace {

constexpr std::size_t kShownName = 80;
constexpr std::int64_t kProtocol = 1001;
// 0x1950a86a20f9469cfc6c as a whole pickle: of protocol 2 and later, behind their header and frame, and of those
// before.
constexpr std::string_view kMagic = "\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
constexpr std::string_view kMagicLine = "L119547037146038801333356L\n.";
constexpr std::size_t kMaxHeader = 11;

using Places = std::map<std::string_view, ByteRange>;

tl::unexpected<Error> damaged(std::string_view why) {
  return fail(ErrorCode::kDataLoss, "it is damaged: " + std::string(why));
}

// The pickles at the head of a file, one behind the other, in one heap.
class Head {
 public:
  explicit Head(std::span<const std::byte> bytes) noexcept : bytes_(bytes) {}

  [[nodiscard]] Result<Id> next() {
    Interpreter interpreter(bytes_.subspan(position_), heap_);
    MODELBROKER_ASSIGN(const Id root, interpreter.run());
    position_ += interpreter.consumed();
    placeholders_.insert(placeholders_.end(), interpreter.placeholders().begin(), interpreter.placeholders().end());
    return root;
  }
  [[nodiscard]] const Heap& heap() const noexcept { return heap_; }
  [[nodiscard]] std::uint64_t position() const noexcept { return position_; }
  [[nodiscard]] std::vector<std::string>& placeholders() noexcept { return placeholders_; }

 private:
  std::span<const std::byte> bytes_;
  Heap heap_;
  std::size_t position_ = 0;
  std::vector<std::string> placeholders_;
};

Result<void> check_writer(const Heap& heap, Id protocol, Id facts) {
  if (heap[protocol].kind != Kind::kInt || heap[protocol].number != kProtocol) {
    return fail(ErrorCode::kUnimplemented, "its protocol is not 1001: load it with torch and save it again");
  }
  if (heap[facts].kind != Kind::kDict) return damaged("it does not say what wrote it");
  const auto items = heap.children(facts);
  for (std::size_t i = 0; i + 1 < items.size(); i += 2) {
    if (heap[items[i]].text != "little_endian") continue;
    if (items[i + 1] == heap.boolean(true)) return {};
    return fail(ErrorCode::kUnimplemented,
                "its byte order is 'big': load it with torch on this machine and save it again");
  }
  return damaged("it does not say its byte order");
}

// Storages by their keys, of every tensor that the object names.
Result<std::map<std::string_view, const Storage*>> storages_of(const Heap& heap) {
  std::map<std::string_view, const Storage*> storages;
  for (const Storage& storage : heap.storages()) {
    const auto [known, is_new] = storages.emplace(storage.key, &storage);
    if (!is_new && known->second->bytes != storage.bytes) {
      return damaged("storage '" + printable(storage.key, kShownName) + "' has two sizes");
    }
  }
  return storages;
}

// Where each storage's elements are.
Result<Places> find_storages(const ByteSource& source, const Heap& heap, Id keys, std::uint64_t position) {
  constexpr std::uint64_t kCount = 8;
  if (heap[keys].kind != Kind::kList) return damaged("it does not list its storages");
  MODELBROKER_ASSIGN(const auto storages, storages_of(heap));
  Places places;
  for (const Id key : heap.children(keys)) {
    const std::string shown = "storage '" + printable(heap[key].text, kShownName) + "'";
    const auto found = storages.find(heap[key].text);
    if (heap[key].kind != Kind::kString || found == storages.end()) return damaged(shown + " belongs to no tensor");
    MODELBROKER_ASSIGN(const auto bytes, source.read(position, kCount));
    std::uint64_t count = 0;
    for (std::size_t i = kCount; i-- > 0;) count = (count << 8U) | std::to_integer<std::uint64_t>(bytes[i]);
    position += kCount;
    const std::uint64_t size = found->second->bytes;
    if (count != found->second->count) return damaged(shown + " has two counts");
    if (size > source.size() - position) return damaged(shown + " reaches past the end of the file");
    if (!places.emplace(heap[key].text, ByteRange{position, size}).second) return damaged(shown + " is listed twice");
    position += size;
  }
  if (position != source.size()) return damaged("there is more behind its last storage");
  return places;
}

Result<TorchTensor> in_file(const Places& places, NamedTensor& tensor) {
  const auto found = places.find(tensor.storage);
  if (found == places.end()) {
    return fail(ErrorCode::kDataLoss, "tensor '" + printable(tensor.name, kShownName) + "': its storage '" +
                                          printable(tensor.storage, kShownName) + "' is not in the file");
  }
  Placement& placement = tensor.placement;
  return TorchTensor{std::move(tensor.name),
                     tensor.dtype->word,
                     std::move(placement.shape),
                     std::move(placement.strides),
                     found->second.offset + placement.offset,
                     placement.size};
}

Result<TorchFile> read_head(const ByteSource& source, std::span<const std::byte> bytes) {
  Head head(bytes);
  MODELBROKER_TRY(head.next());  // the magic number
  MODELBROKER_ASSIGN(const Id protocol, head.next());
  MODELBROKER_ASSIGN(const Id facts, head.next());
  MODELBROKER_TRY(check_writer(head.heap(), protocol, facts));
  MODELBROKER_ASSIGN(const Id root, head.next());
  MODELBROKER_ASSIGN(const Id keys, head.next());
  MODELBROKER_ASSIGN(Flattened flat, flatten(head.heap(), root));
  MODELBROKER_ASSIGN(const Places places, find_storages(source, head.heap(), keys, head.position()));
  TorchFile file{.format = "torch_legacy",
                 .wrapper = std::move(flat.wrapper),
                 .values = std::move(flat.values),
                 .values_left_out = flat.values_left_out,
                 .left_out = flat.left_out,
                 .placeholders = std::move(head.placeholders())};
  for (NamedTensor& tensor : flat.tensors) {
    MODELBROKER_ASSIGN(TorchTensor placed, in_file(places, tensor));
    file.tensors.push_back(std::move(placed));
  }
  return file;
}

}  // namespace

bool is_torch_legacy(std::string_view head) noexcept {
  return head.starts_with(kMagicLine) || head.substr(0, kMaxHeader + kMagic.size()).find(kMagic) != head.npos;
}

// The pickles' size stands nowhere: a part of the file is read, and a larger one where that does not suffice.
Result<TorchFile> read_torch_legacy(const ByteSource& source) {
  constexpr std::uint64_t kFirst = 1U << 20U, kGrowth = 8;
  for (std::uint64_t size = kFirst;; size *= kGrowth) {
    const std::uint64_t part = std::min({size, source.size(), kMaxPickleBytes});
    MODELBROKER_ASSIGN(const auto bytes, source.read(0, part));
    auto file = read_head(source, bytes);
    const bool is_whole = part == source.size() || part == kMaxPickleBytes;
    if (file || is_whole || file.error().code != ErrorCode::kDataLoss) return file;
  }
}

}  // namespace modelbroker::unpickle
