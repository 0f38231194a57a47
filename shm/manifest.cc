#include "shm/manifest.h"

#include <algorithm>
#include <limits>
#include <msgpack.hpp>
#include <unordered_set>
#include <utility>

#include "shm/dtype.h"

namespace modelbroker {
namespace {

using Object = msgpack::object;
using Packer = msgpack::packer<msgpack::sbuffer>;

constexpr std::uint64_t kManifestVersion = 1;
constexpr std::uint32_t kTensorFields = 5;  // a later version may have more, after these
constexpr std::size_t kMostRank = 64;
// This version's has six levels; of a later one it must be possible to see that it is one.
constexpr std::size_t kMostDepth = 32;

tl::unexpected<Error> bad(const std::string& why) { return fail(ErrorCode::kDataLoss, "manifest: " + why); }

// Its hash was right, so this is not damage: a later version wrote it.
tl::unexpected<Error> unknown(const std::string& why) {
  return fail(ErrorCode::kUnimplemented, "manifest: " + why + ": it needs a newer modelbroker");
}

bool text(const Object& object, std::string& value) {
  if (object.type != msgpack::type::STR) return false;
  value.assign(object.via.str.ptr, object.via.str.size);
  return true;
}
bool number(const Object& object, std::uint64_t& value) {
  if (object.type != msgpack::type::POSITIVE_INTEGER) return false;
  value = object.via.u64;
  return true;
}
bool number(const Object& object, std::int64_t& value) {
  if (object.type == msgpack::type::NEGATIVE_INTEGER) {
    value = object.via.i64;
    return true;
  }
  if (object.type != msgpack::type::POSITIVE_INTEGER ||
      object.via.u64 > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
    return false;
  }
  value = static_cast<std::int64_t>(object.via.u64);
  return true;
}

// The map's values by key; refuses keys that are no strings or stand twice.
using Fields = std::map<std::string_view, const Object*>;
Result<Fields> fields_of(const Object& object, const char* what) {
  if (object.type != msgpack::type::MAP) return unknown(std::string(what) + " is not a map");
  Fields fields;
  for (std::uint32_t i = 0; i < object.via.map.size; ++i) {
    const auto& pair = object.via.map.ptr[i];
    if (pair.key.type != msgpack::type::STR) return unknown(std::string(what) + " has a key that is not a string");
    if (!fields.emplace(std::string_view(pair.key.via.str.ptr, pair.key.via.str.size), &pair.val).second) {
      return bad(std::string(what) + " has a key twice");
    }
  }
  return fields;
}

template <class Read, class Value>
bool read(const Fields& fields, std::string_view key, Read reader, Value& value) {
  const auto found = fields.find(key);
  return found != fields.end() && reader(*found->second, value);
}

constexpr auto kText = [](const Object& object, std::string& value) { return text(object, value); };
constexpr auto kNumber = [](const Object& object, auto& value) { return number(object, value); };

Result<TensorEntry> tensor_of(const Object& object, std::uint64_t payload_size) {
  TensorEntry tensor;
  if (object.type != msgpack::type::ARRAY || object.via.array.size < kTensorFields) {
    return unknown("a tensor is not an array of five or more");
  }
  const Object* const item = object.via.array.ptr;
  if (!text(item[0], tensor.name) || !text(item[1], tensor.dtype) || item[2].type != msgpack::type::ARRAY ||
      item[2].via.array.size > kMostRank || !number(item[3], tensor.offset) || !number(item[4], tensor.size)) {
    return unknown("a tensor's fields are not of their kinds");
  }
  if (!valid_dtype(tensor.dtype)) return unknown("a tensor's dtype is not a word");
  tensor.shape.resize(item[2].via.array.size);
  for (std::size_t i = 0; i < tensor.shape.size(); ++i) {
    if (!number(item[2].via.array.ptr[i], tensor.shape[i])) return unknown("a shape is not made of unsigned integers");
  }
  const auto fits = check_tensor_size(tensor.dtype, tensor.shape, tensor.size);
  if (!fits) return bad("a tensor: " + fits.error().message);
  if (tensor.offset > payload_size || tensor.size > payload_size - tensor.offset) {
    return bad("a tensor lies outside the payload");
  }
  return tensor;
}

Result<void> read_tensors(const Object& object, std::uint64_t payload_size, Manifest& manifest) {
  if (object.type != msgpack::type::ARRAY) return unknown("'tensors' is not an array");
  std::unordered_set<std::string_view> names;
  manifest.tensors.reserve(object.via.array.size);
  for (std::uint32_t i = 0; i < object.via.array.size; ++i) {
    MODELBROKER_ASSIGN(TensorEntry tensor, tensor_of(object.via.array.ptr[i], payload_size));
    if (i > 0 && tensor.offset < manifest.tensors.back().offset) return bad("the tensors are not in order");
    manifest.tensors.push_back(std::move(tensor));
  }
  for (const TensorEntry& tensor : manifest.tensors) {
    if (!names.insert(tensor.name).second) return bad("a tensor's name stands twice");
  }
  return {};
}

Result<void> read_metadata(const Object& object, Manifest& manifest) {
  MODELBROKER_ASSIGN(const Fields fields, fields_of(object, "'metadata'"));
  for (const auto& [key, value] : fields) {
    if (!text(*value, manifest.metadata[std::string(key)]))
      return unknown("'metadata' has a value that is not a string");
  }
  return {};
}

Result<SetPart> part_of(const Object& object) {
  MODELBROKER_ASSIGN(const Fields fields, fields_of(object, "a part of the set"));
  SetPart part;
  if (!read(fields, "name", kText, part.name) || !read(fields, "device", kNumber, part.device) ||
      !read(fields, "inode", kNumber, part.inode) || !read(fields, "size", kNumber, part.size) ||
      !read(fields, "mtime_ns", kNumber, part.mtime_ns)) {
    return unknown("a part of the set is incomplete");
  }
  return part;
}

Result<BlockSet> set_of(const Object& object) {
  MODELBROKER_ASSIGN(const Fields fields, fields_of(object, "'set'"));
  BlockSet set;
  const auto parts = fields.find("parts");
  if (!read(fields, "id", kText, set.id) || !read(fields, "index", kNumber, set.index) || parts == fields.end() ||
      parts->second->type != msgpack::type::ARRAY || parts->second->via.array.size > BlockSet::kMaxParts) {
    return unknown("'set' is incomplete");
  }
  for (std::uint32_t i = 0; i < parts->second->via.array.size; ++i) {
    MODELBROKER_ASSIGN(SetPart part, part_of(parts->second->via.array.ptr[i]));
    set.parts.push_back(std::move(part));
  }
  if (set.index >= set.parts.size()) return bad("its block is not one of its set's parts");
  return set;
}

Result<void> read_source(const Object& object, Manifest& manifest) {
  MODELBROKER_ASSIGN(const Fields source, fields_of(object, "'source'"));
  if (!read(source, "path", kText, manifest.source_path) || !read(source, "device", kNumber, manifest.source.device) ||
      !read(source, "inode", kNumber, manifest.source.inode) || !read(source, "size", kNumber, manifest.source.size) ||
      !read(source, "mtime_ns", kNumber, manifest.source.mtime_ns) ||
      !read(source, "ctime_ns", kNumber, manifest.source.ctime_ns)) {
    return unknown("'source' is incomplete");
  }
  return {};
}

// Before anything else is judged: a later version may differ in all but this.
Result<void> check_version(const Object& object) {
  if (object.type != msgpack::type::MAP) return bad("the whole is not a map");
  for (std::uint32_t i = 0; i < object.via.map.size; ++i) {
    const auto& pair = object.via.map.ptr[i];
    std::string key;
    std::uint64_t version = 0;
    if (!text(pair.key, key) || key != "version") continue;
    if (!number(pair.val, version) || version == 0) return bad("its version is not a positive number");
    if (version == kManifestVersion) return {};
    return fail(ErrorCode::kUnimplemented, "manifest: version " + std::to_string(version) +
                                               " needs a newer modelbroker (this one reads " +
                                               std::to_string(kManifestVersion) + ")");
  }
  return bad("it has no version");
}

Result<Manifest> manifest_of(const Object& object, std::uint64_t payload_size) {
  MODELBROKER_TRY(check_version(object));
  MODELBROKER_ASSIGN(const Fields fields, fields_of(object, "the whole"));
  Manifest manifest;
  if (!read(fields, "name", kText, manifest.name) || !read(fields, "type", kText, manifest.type) ||
      !read(fields, "format", kText, manifest.format) || !fields.contains("metadata") || !fields.contains("tensors")) {
    return unknown("a field is missing or of another kind");
  }
  if (const auto source = fields.find("source"); source != fields.end()) {
    MODELBROKER_TRY(read_source(*source->second, manifest));
  }
  if (const auto set = fields.find("set"); set != fields.end()) {
    MODELBROKER_ASSIGN(manifest.set, set_of(*set->second));
  }
  MODELBROKER_TRY(read_metadata(*fields.at("metadata"), manifest));
  MODELBROKER_TRY(read_tensors(*fields.at("tensors"), payload_size, manifest));
  return manifest;
}

template <class Value>
void pack_field(Packer& packer, const char* key, const Value& value) {
  packer.pack(key);
  packer.pack(value);
}

void pack_source(Packer& packer, const Manifest& manifest) {
  packer.pack("source");
  packer.pack_map(6);
  pack_field(packer, "path", manifest.source_path);
  pack_field(packer, "device", manifest.source.device);
  pack_field(packer, "inode", manifest.source.inode);
  pack_field(packer, "size", manifest.source.size);
  pack_field(packer, "mtime_ns", manifest.source.mtime_ns);
  pack_field(packer, "ctime_ns", manifest.source.ctime_ns);
}

void pack_set(Packer& packer, const BlockSet& set) {
  packer.pack("set");
  packer.pack_map(3);
  pack_field(packer, "id", set.id);
  pack_field(packer, "index", set.index);
  packer.pack("parts");
  packer.pack_array(static_cast<std::uint32_t>(set.parts.size()));
  for (const SetPart& part : set.parts) {
    packer.pack_map(5);
    pack_field(packer, "name", part.name);
    pack_field(packer, "device", part.device);
    pack_field(packer, "inode", part.inode);
    pack_field(packer, "size", part.size);
    pack_field(packer, "mtime_ns", part.mtime_ns);
  }
}

void pack_tensors(Packer& packer, const std::vector<TensorEntry>& tensors) {
  std::vector<const TensorEntry*> in_order;
  in_order.reserve(tensors.size());
  for (const TensorEntry& tensor : tensors) in_order.push_back(&tensor);
  std::ranges::stable_sort(in_order, {}, &TensorEntry::offset);
  packer.pack_array(static_cast<std::uint32_t>(in_order.size()));
  for (const TensorEntry* const tensor : in_order) {
    packer.pack_array(kTensorFields);
    packer.pack(tensor->name);
    packer.pack(tensor->dtype);
    packer.pack(tensor->shape);
    packer.pack(tensor->offset);
    packer.pack(tensor->size);
  }
}

}  // namespace

std::vector<std::byte> Manifest::encode() const {
  msgpack::sbuffer buffer;
  Packer packer(buffer);
  packer.pack_map(6U + (has_source() ? 1U : 0U) + (set ? 1U : 0U));
  pack_field(packer, "version", kManifestVersion);
  pack_field(packer, "name", name);
  pack_field(packer, "type", type);
  pack_field(packer, "format", format);
  if (has_source()) pack_source(packer, *this);
  if (set) pack_set(packer, *set);
  pack_field(packer, "metadata", metadata);
  packer.pack("tensors");
  pack_tensors(packer, tensors);
  const auto* const begin = reinterpret_cast<const std::byte*>(buffer.data());
  return {begin, begin + buffer.size()};
}

Result<Manifest> Manifest::decode(std::span<const std::byte> bytes, std::uint64_t payload_size) {
  try {
    // Every element takes a byte at least, so no honest count passes the size.
    const std::size_t most = bytes.size();
    const msgpack::unpack_limit limits(most, most, most, most, most, kMostDepth);
    std::size_t consumed = 0;
    const msgpack::object_handle handle =
        msgpack::unpack(reinterpret_cast<const char*>(bytes.data()), bytes.size(), consumed, nullptr, nullptr, limits);
    if (consumed != bytes.size()) return bad("there are bytes after its end");
    return manifest_of(handle.get(), payload_size);
  } catch (const std::exception& error) {
    return bad(std::string("it is not msgpack (") + error.what() + ")");
  }
}

}  // namespace modelbroker
