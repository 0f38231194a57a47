#include "broker/api/model_views.h"

#include <algorithm>
#include <chrono>
#include <utility>
#include <vector>

#include "broker/models/model_events.h"
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

// The leases on any of these blocks.
std::vector<wire::LeaseHolder> leases_on(const Books& books, const std::vector<wire::ModelBlock>& blocks) {
  std::vector<std::string> ids;
  for (const wire::ModelBlock& block : blocks) ids.push_back(block.block);
  std::vector<wire::LeaseHolder> leases;
  const TimePoint now = books.clock.now();
  for (const LeaseBook::Holder& holder : books.leases.holders(ids)) {
    const auto age = std::chrono::duration_cast<std::chrono::milliseconds>(now - holder.since).count();
    leases.push_back(
        {static_cast<std::uint64_t>(holder.peer.pid), holder.peer.uid, holder.number, static_cast<std::uint64_t>(age)});
  }
  return leases;
}

// The single fields are those of its block, and stay empty where there are several.
void add_blocks(const Books& books, wire::ModelInfo& info, std::vector<wire::ModelBlock> blocks) {
  if (blocks.size() == 1) {
    info.block = blocks.front().block;
    info.block_path = blocks.front().path;
    info.page_kind = blocks.front().page_kind;
  }
  info.leases = leases_on(books, blocks);
  info.blocks = std::move(blocks);
}

// Of a block that no model has.
wire::ModelInfo describe(const Books& books, const RamBlock& held, uid_t uid) {
  const Manifest& manifest = held.block->manifest();
  const bool shown = books.may_attach(uid, held);
  wire::ModelInfo info;
  info.name = manifest.name;
  info.type = manifest.type;
  info.format = manifest.format;
  if (shown) info.path = held.path();
  info.state = held.is_spare ? "incomplete" : "draining";
  info.generation = held.generation();
  info.bytes = held.bytes();
  info.payload_bytes = info.loaded_bytes = held.payload_bytes();
  info.tensors = manifest.tensors.size();
  add_blocks(books, info, {block_of(held, shown)});
  return info;
}

}  // namespace

wire::ModelInfo describe(const Books& books, const ModelEntry& model, uid_t uid) {
  const bool shown = books.may_attach(uid, model);
  wire::ModelInfo info;
  info.name = model.name();
  info.aliases.assign(model.names.begin() + 1, model.names.end());
  info.type = model.type;
  info.format = model.parts.front()->block->manifest().format;
  if (shown) info.path = model.path;
  info.state = "resident";
  info.generation = model.generation();
  info.bytes = model.bytes();
  info.payload_bytes = info.loaded_bytes = model.payload_bytes();
  for (const RamBlock* const part : model.parts) info.tensors += part->block->manifest().tensors.size();
  add_blocks(books, info, blocks_of(model, shown));
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
    if (block.models == 0) list.draining.push_back(describe(books, block, uid));
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
