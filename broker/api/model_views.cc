#include "broker/api/model_views.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "broker/models/ram_tier.h"

namespace modelbroker {
namespace {

// Unix seconds of what lies so far ahead. Only shown: a clock that jumps moves no expiry.
double wall_clock_seconds(Duration ahead) {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch() + ahead).count();
}

double seconds_of(Duration keep_alive) {
  return keep_alive < Duration(0) ? -1 : std::chrono::duration<double>(keep_alive).count();
}

// Of a block, and of a model that has it alone.
wire::ModelInfo describe_block(const Books& books, const RamBlock& held, uid_t uid) {
  const Block& block = *held.block;
  wire::ModelInfo info;
  info.name = block.manifest().name;
  info.type = block.manifest().type;
  info.format = block.manifest().format;
  if (books.may_attach(uid, held)) info.path = held.path();
  info.state = "draining";
  info.block = held.id();
  info.block_path = block.path();
  info.generation = held.generation();
  info.bytes = held.bytes();
  info.payload_bytes = info.loaded_bytes = held.payload_bytes();
  info.tensors = block.manifest().tensors.size();
  info.page_kind = to_string(block.page_kind());
  const TimePoint now = books.clock.now();
  for (const LeaseBook::Holder& holder : books.leases.holders(held.id())) {
    const auto age = std::chrono::duration_cast<std::chrono::milliseconds>(now - holder.since).count();
    info.leases.push_back(
        {static_cast<std::uint64_t>(holder.peer.pid), holder.peer.uid, holder.number, static_cast<std::uint64_t>(age)});
  }
  return info;
}

}  // namespace

wire::ModelInfo describe(const Books& books, const ModelEntry& model, uid_t uid) {
  wire::ModelInfo info = describe_block(books, *model.parts.front(), uid);
  info.name = model.name();
  info.aliases.assign(model.names.begin() + 1, model.names.end());
  info.type = model.type;
  if (books.may_attach(uid, model)) info.path = model.path;
  info.state = "resident";
  info.pinned = model.pinned;
  info.keep_alive = seconds_of(model.keep_alive);
  if (const auto end = expires_at(books, model)) info.expires_at = wall_clock_seconds(*end - books.clock.now());
  return info;
}

wire::ModelInfo describe(const Books& books, const std::string& name, const RememberedNames::Model& remembered,
                         uid_t uid) {
  wire::ModelInfo info;
  info.name = name;
  info.type = remembered.type;
  info.state = "remembered";
  if (books.rights.manage(uid, remembered.given.loader)) info.path = remembered.given.path;
  if (remembered.source) info.payload_bytes = remembered.source->size;
  info.pinned = remembered.pinned;
  info.keep_alive = seconds_of(remembered.keep_alive);
  return info;
}

wire::ModelListReply list_models(const Books& books, const Loading& loading, uid_t uid, bool all) {
  wire::ModelListReply list;
  for (const auto& [id, model] : books.models.all()) list.models.push_back(describe(books, model, uid));
  // Withdrawn, or without a model: then it drains as soon as its file can be renamed.
  for (const auto& [id, block] : books.blocks.all()) {
    if (block.models == 0) list.draining.push_back(describe_block(books, block, uid));
  }
  for (const BlockLoads::Running& running : loading.running()) {
    wire::ModelInfo info;
    info.name = running.model;
    if (!running.is_private || books.rights.manage(uid, running.uid)) info.path = running.path;
    info.type = running.type;
    info.state = "loading";
    info.payload_bytes = running.total_bytes;
    info.loaded_bytes = running.read_bytes;
    list.models.push_back(std::move(info));
  }
  if (all) {
    for (const RememberedNames::Named& named : books.models.remembered().all()) {
      list.models.push_back(describe(books, named.name, named.model, uid));
    }
  }
  std::ranges::sort(list.models, {}, &wire::ModelInfo::name);
  return list;
}

}  // namespace modelbroker
