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

}  // namespace

bool is_withdrawn(const Resident& resident) { return resident.draining() || resident.names.empty(); }

wire::ModelInfo describe(const Books& books, const Resident& resident, uid_t uid) {
  const Block& block = *resident.block;
  wire::ModelInfo info;
  info.name = resident.name();
  if (resident.names.size() > 1) info.aliases.assign(resident.names.begin() + 1, resident.names.end());
  info.type = resident.type;
  info.format = block.manifest().format;
  if (books.may_attach(uid, resident)) info.path = resident.path;
  info.state = is_withdrawn(resident) ? "draining" : "resident";
  info.block = block.id();
  info.block_path = block.path();
  info.generation = block.name().generation;
  info.bytes = resident.bytes();
  info.payload_bytes = info.loaded_bytes = block.header().layout.payload.size;
  info.tensors = block.manifest().tensors.size();
  info.page_kind = to_string(block.page_kind());
  info.pinned = resident.pinned;
  info.keep_alive = resident.keep_alive < Duration(0) ? -1 : std::chrono::duration<double>(resident.keep_alive).count();
  if (const auto end = expires_at(books, resident)) info.expires_at = wall_clock_seconds(*end - books.clock.now());
  const TimePoint now = books.clock.now();
  for (const LeaseBook::Holder& holder : books.leases.holders(block.id())) {
    const auto age = std::chrono::duration_cast<std::chrono::milliseconds>(now - holder.since).count();
    info.leases.push_back(
        {static_cast<std::uint64_t>(holder.peer.pid), holder.peer.uid, holder.number, static_cast<std::uint64_t>(age)});
  }
  return info;
}

wire::ModelListReply list_models(const Books& books, const Loads& loads, uid_t uid) {
  wire::ModelListReply list;
  for (const auto& [id, resident] : books.store.all()) {
    (is_withdrawn(resident) ? list.draining : list.models).push_back(describe(books, resident, uid));
  }
  for (const Loads::Running& running : loads.running()) {
    wire::ModelInfo info;
    info.name = running.name;
    if (!running.is_private || books.rights.manage(uid, running.uid)) info.path = running.path;
    info.type = running.type;
    info.state = "loading";
    info.payload_bytes = running.progress->total_bytes;
    info.loaded_bytes = running.progress->read_bytes;
    list.models.push_back(std::move(info));
  }
  std::ranges::sort(list.models, {}, &wire::ModelInfo::name);
  return list;
}

}  // namespace modelbroker
