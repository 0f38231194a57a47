#include "broker/api/model_views.h"

#include <algorithm>
#include <chrono>
#include <utility>
#include <vector>

#include "broker/models/model_events.h"
#include "broker/models/model_rights.h"

namespace modelbroker {
namespace {

// Unix seconds of what lies so far ahead. Only shown: a clock that jumps moves no expiry.
double wall_clock_seconds(Duration ahead) {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch() + ahead).count();
}

double seconds_of(Duration keep_alive) {
  return keep_alive < Duration(0) ? -1 : std::chrono::duration<double>(keep_alive).count();
}

}  // namespace

// The leases on any of these blocks.
std::vector<wire::LeaseHolder> ModelViews::leases_on(const std::vector<wire::ModelBlock>& blocks) const {
  std::vector<std::string> ids;
  ids.reserve(blocks.size());
  for (const wire::ModelBlock& block : blocks) ids.push_back(block.block);
  std::vector<wire::LeaseHolder> leases;
  const TimePoint now = env_.clock.now();
  for (const LeaseBook::Holder& holder : workers_.leases.holders(ids)) {
    const auto age = std::chrono::duration_cast<std::chrono::milliseconds>(now - holder.since).count();
    leases.push_back(
        {static_cast<std::uint64_t>(holder.peer.pid), holder.peer.uid, holder.number, static_cast<std::uint64_t>(age)});
  }
  return leases;
}

// The single fields are those of its block, and stay empty where there are several.
void ModelViews::add_blocks(wire::ModelInfo& info, std::vector<wire::ModelBlock> blocks) const {
  if (blocks.size() == 1) {
    info.block = blocks.front().block;
    info.block_path = blocks.front().path;
    info.page_kind = blocks.front().page_kind;
  }
  info.leases = leases_on(blocks);
  info.blocks = std::move(blocks);
}

// Of a block that no model has.
wire::ModelInfo ModelViews::of(const RamBlock& held, uid_t uid) const {
  const Manifest& manifest = held.block->manifest();
  const bool shown = may_attach(workers_.rights, uid, held);
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
  add_blocks(info, {block_of(held, shown)});
  return info;
}

wire::ModelInfo ModelViews::of(const ModelEntry& model, uid_t uid) const {
  const bool shown = may_attach(workers_.rights, uid, model);
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
  add_blocks(info, blocks_of(model, shown));
  info.pinned = model.pinned;
  info.keep_alive = seconds_of(model.keep_alive);
  if (const auto end = tier_.expires_at(model)) info.expires_at = wall_clock_seconds(*end - env_.clock.now());
  return info;
}

wire::ModelInfo ModelViews::of(const std::string& name, const RememberedNames::Model& remembered, uid_t uid) const {
  wire::ModelInfo info;
  info.name = name;
  info.type = remembered.type;
  info.state = "remembered";
  if (workers_.rights.manage(uid, remembered.given.loader)) info.path = remembered.given.path;
  if (remembered.source) info.payload_bytes = remembered.source->size;
  info.pinned = remembered.pinned;
  info.keep_alive = seconds_of(remembered.keep_alive);
  return info;
}

wire::ModelListReply ModelViews::list(uid_t uid, bool all) const {
  wire::ModelListReply reply;
  for (const auto& [id, model] : models_.all()) reply.models.push_back(of(model, uid));
  // Withdrawn, or without a model: then it drains as soon as its file can be renamed.
  for (const auto& [id, block] : ram_.blocks.all()) {
    if (block.models == 0) reply.draining.push_back(of(block, uid));
  }
  for (const BlockLoads::Running& running : loading_.running()) {
    wire::ModelInfo info;
    info.name = running.model;
    if (!running.is_private || workers_.rights.manage(uid, running.uid)) info.path = running.path;
    info.type = running.type;
    info.state = "loading";
    info.payload_bytes = running.total_bytes;
    info.loaded_bytes = running.read_bytes;
    reply.models.push_back(std::move(info));
  }
  if (all) {
    for (const RememberedNames::Named& named : models_.remembered().all()) {
      reply.models.push_back(of(named.name, named.model, uid));
    }
  }
  std::ranges::sort(reply.models, {}, &wire::ModelInfo::name);
  return reply;
}

}  // namespace modelbroker
