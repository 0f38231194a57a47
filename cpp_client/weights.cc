#include "cpp_client/weights.h"

#include <algorithm>
#include <numeric>

#include "cpp_client/attached.h"
#include "shm/text.h"

namespace modelbroker {
namespace {

using Contents = Weights::Attached::Contents;

void add_tensors(Contents& contents, const Manifest& manifest, std::span<const std::byte> payload) {
  for (const TensorEntry& entry : manifest.tensors) {
    contents.tensors.push_back({.name = entry.name,
                                .dtype = entry.dtype,
                                .shape = entry.shape,
                                .bytes = payload.subspan(entry.offset, entry.size)});
  }
}

// Of two with one name, the later stays.
void index(Contents& contents) {
  std::vector<Tensor>& tensors = contents.tensors;
  const auto sorted = [&] {
    std::vector<std::uint32_t> order(tensors.size());
    std::iota(order.begin(), order.end(), 0U);
    std::ranges::stable_sort(order, {}, [&](std::uint32_t i) { return tensors[i].name; });
    return order;
  };
  contents.by_name = sorted();
  if (contents.manifests.size() < 2) return;  // names are unique in one
  std::vector<bool> hidden(tensors.size());
  for (std::size_t i = 1; i < contents.by_name.size(); ++i) {
    const std::uint32_t before = contents.by_name[i - 1];
    hidden[before] = tensors[before].name == tensors[contents.by_name[i]].name;
  }
  std::size_t position = 0;
  std::erase_if(tensors, [&](const Tensor&) { return hidden[position++]; });
  contents.by_name = sorted();
}

}  // namespace

Result<const Contents*> Weights::Attached::contents() const {
  if (const Contents* known = decoded.load()) return known;
  auto fresh = std::make_unique<Contents>();
  fresh->manifests.reserve(views.size());  // tensors point into them
  for (const BlockView& view : views) {
    MODELBROKER_ASSIGN(Manifest manifest, view.read_manifest());
    add_tensors(*fresh, fresh->manifests.emplace_back(std::move(manifest)), view.payload());
  }
  index(*fresh);
  const Contents* first = nullptr;
  return decoded.compare_exchange_strong(first, fresh.get()) ? fresh.release() : first;
}

Weights::Weights(std::shared_ptr<const Attached> attached) noexcept : attached_(std::move(attached)) {}

const std::string& Weights::model() const noexcept { return attached_->model; }
std::uint64_t Weights::generation() const noexcept { return attached_->generation; }
Mode Weights::mode() const noexcept { return attached_->mode; }
std::string_view Weights::page_kind() const noexcept { return attached_->page_kind; }

Result<std::span<const Tensor>> Weights::tensors() const {
  MODELBROKER_ASSIGN(const Contents* contents, attached_->contents());
  return std::span<const Tensor>(contents->tensors);
}

Result<Tensor> Weights::tensor(std::string_view name) const {
  MODELBROKER_ASSIGN(const Contents* contents, attached_->contents());
  const auto name_of = [&](std::uint32_t i) { return contents->tensors[i].name; };
  const auto found = std::ranges::lower_bound(contents->by_name, name, {}, name_of);
  if (found != contents->by_name.end() && name_of(*found) == name) return contents->tensors[*found];
  return fail(ErrorCode::kNotFound, "model '" + printable(model()) + "' has no tensor '" + printable(name) + "'");
}

Result<std::map<std::string, std::string>> Weights::metadata() const {
  MODELBROKER_ASSIGN(const Contents* contents, attached_->contents());
  std::map<std::string, std::string> all;
  for (const Manifest& manifest : contents->manifests) {
    for (const auto& [key, value] : manifest.metadata) all[key] = value;
  }
  return all;
}

std::span<std::byte> Weights::writable(const Tensor& tensor) const noexcept {
  if (attached_->mode != Mode::kPrivate) return {};
  // The mapping is ours and may be written: only the view of it was const.
  return {const_cast<std::byte*>(tensor.bytes.data()), tensor.bytes.size()};
}

std::shared_ptr<const void> Weights::hold() const noexcept { return attached_; }

}  // namespace modelbroker
