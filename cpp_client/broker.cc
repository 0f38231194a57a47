#include "cpp_client/broker.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <optional>

#include "cpp_client/attached.h"
#include "cpp_client/connection.h"
#include "cpp_client/find_broker.h"
#include "cpp_client/link.h"
#include "cpp_client/paths.h"

namespace modelbroker {
namespace {

using client::Deadline;
using client::Link;

constexpr Timeout kShort{30'000};  // requests that only look at the books

Os& plain_os() {
  // Never destroyed: weights in static objects may need it at the very end.
  static Os& os = *make_plain_os().release();
  return os;
}

bool is_path(const std::string& word) { return word.starts_with('/'); }

// By its path where we see the folder and may read the file, else by the broker's hand.
Result<Fd> open_block(Link& link, const wire::BlockGrant& grant, const Deadline& deadline) {
  // Without O_NONBLOCK: while the broker asks the kernel who has the block, we wait.
  auto fd = plain_os().open(grant.path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW, 0);
  if (fd) return std::move(*fd);
  return link.open_block(grant.block, deadline);
}

std::vector<ModelBlock> blocks_of(std::vector<wire::ModelBlock>&& told) {
  std::vector<ModelBlock> blocks;
  blocks.reserve(told.size());
  for (wire::ModelBlock& block : told) {
    blocks.push_back({.block = std::move(block.block),
                      .path = std::move(block.path),
                      .source = std::move(block.source),
                      .generation = block.generation,
                      .bytes = block.bytes,
                      .payload_bytes = block.payload_bytes,
                      .page_kind = std::move(block.page_kind)});
  }
  return blocks;
}

Model model_of(wire::ModelInfo&& info) {
  Model model{.name = std::move(info.name),
              .aliases = std::move(info.aliases),
              .type = std::move(info.type),
              .format = std::move(info.format),
              .path = std::move(info.path),
              .state = std::move(info.state),
              .block = std::move(info.block),
              .generation = info.generation,
              .bytes = info.bytes,
              .payload_bytes = info.payload_bytes,
              .loaded_bytes = info.loaded_bytes,
              .tensors = info.tensors,
              .page_kind = std::move(info.page_kind),
              .pinned = info.pinned,
              .leases = {},
              .blocks = blocks_of(std::move(info.blocks))};
  for (const wire::LeaseHolder& holder : info.leases) model.leases.push_back({holder.pid, holder.uid});
  return model;
}

Tier tier_of(const wire::TierStatus& tier) {
  return {.limit = tier.limit,
          .reserved = tier.reserved,
          .made = tier.made,
          .draining = tier.draining,
          .pinned = tier.pinned,
          .leased = tier.leased,
          .models = tier.models,
          .leases = tier.leases,
          .hits = tier.hits,
          .misses = tier.misses,
          .loads = tier.loads,
          .evictions = tier.evictions,
          .foreign = tier.foreign,
          .foreign_blocks = tier.foreign_blocks};
}

}  // namespace

Broker::Broker(std::shared_ptr<Link> link) noexcept : link_(std::move(link)) {}
Broker::Broker(Broker&&) noexcept = default;
Broker& Broker::operator=(Broker&&) noexcept = default;
Broker::~Broker() = default;

Result<Broker> Broker::connect(const ConnectOptions& options) {
  const Deadline deadline(options.timeout);
  return client::find_broker(options, deadline, [&](const wire::Endpoint& endpoint) -> Result<Broker> {
    MODELBROKER_ASSIGN(auto link, Link::make(plain_os(), endpoint));
    MODELBROKER_TRY(link->open(deadline.at_most(kShort)));
    return Broker(std::move(link));
  });
}

Result<Link*> Broker::link() {
  if (link_->pid() != ::getpid()) {
    MODELBROKER_ASSIGN(link_, Link::make(plain_os(), link_->endpoint()));
  }
  return link_.get();
}

Result<Loaded> Broker::load(const std::string& path, const LoadOptions& options) {
  const Deadline deadline(options.timeout);
  wire::LoadModel request;
  request.path = client::absolute_path(path);
  request.name = options.name;
  request.type = options.type;
  request.pin = options.pin;
  request.retry = options.retry;
  request.keep_alive = options.keep_alive_seconds;
  MODELBROKER_ASSIGN(Link* const link, this->link());
  MODELBROKER_ASSIGN(const auto sources, client::open_sources(plain_os(), request.path));
  MODELBROKER_ASSIGN(auto loaded, link->call<wire::LoadModelReply>("model.load_model", request, deadline, &sources));
  return Loaded{.model = std::move(loaded.model),
                .block = std::move(loaded.block),
                .generation = loaded.generation,
                .bytes = loaded.bytes,
                .payload_bytes = loaded.payload_bytes,
                .page_kind = std::move(loaded.page_kind),
                .outcome = std::move(loaded.outcome),
                .seconds = loaded.seconds,
                .blocks = blocks_of(std::move(loaded.blocks))};
}

Result<Unloaded> Broker::unload(const std::string& model, const UnloadOptions& options) {
  wire::UnloadModel request;
  request.model = client::name_or_path(model);
  request.wait = options.wait;
  MODELBROKER_ASSIGN(Link* const link, this->link());
  MODELBROKER_ASSIGN(auto unloaded, link->call<wire::UnloadModelReply>("model.unload_model", std::move(request),
                                                                       Deadline(options.timeout)));
  return Unloaded{.model = std::move(unloaded.model),
                  .freed = unloaded.freed,
                  .draining = unloaded.draining,
                  .remaining_names = std::move(unloaded.remaining_names)};
}

Result<Weights> Broker::attach(const std::string& model, const AttachOptions& options) {
  const Deadline deadline(options.timeout);
  wire::Attach request;
  request.model = client::name_or_path(model);
  MODELBROKER_ASSIGN(Link* const link, this->link());
  std::optional<client::SourceFiles> sources;
  if (is_path(request.model)) {
    auto opened = client::open_sources(plain_os(), request.model);
    if (opened) {
      sources = std::move(*opened);
    } else if (opened.error().code == ErrorCode::kNotFound) {
      request.load = false;  // the file may be gone while its weights are not
    } else {
      return tl::unexpected(std::move(opened).error());
    }
  }
  MODELBROKER_ASSIGN(Link::Granted granted, link->attach(std::move(request), deadline, sources ? &*sources : nullptr));
  auto attached = std::make_shared<Weights::Attached>();
  attached->model = std::move(granted.reply.model);
  attached->mode = options.mode;
  attached->lease = std::move(granted.lease);
  const Access access = options.mode == Mode::kReadOnly ? Access::kReadOnly : Access::kPrivate;
  for (const wire::BlockGrant& grant : granted.reply.blocks) {
    MODELBROKER_ASSIGN(const Fd block, open_block(*link, grant, deadline));
    MODELBROKER_ASSIGN(BlockView view, BlockView::map(plain_os(), block, access));
    attached->views.push_back(std::move(view));
    attached->generation = std::max(attached->generation, grant.generation);
    attached->page_kind = grant.page_kind;
  }
  return Weights(std::move(attached));
}

Result<std::vector<Model>> Broker::list() {
  MODELBROKER_ASSIGN(Link* const link, this->link());
  MODELBROKER_ASSIGN(auto reply, link->call<wire::ModelListReply>("model.list", wire::Empty{}, Deadline(kShort)));
  std::vector<Model> models;
  for (wire::ModelInfo& info : reply.models) models.push_back(model_of(std::move(info)));
  return models;
}

Result<Status> Broker::status() {
  MODELBROKER_ASSIGN(Link* const link, this->link());
  MODELBROKER_ASSIGN(auto reply, link->call<wire::StatusReply>("cache.status", wire::Empty{}, Deadline(kShort)));
  Status status{.boot_id = std::move(reply.boot_id),
                .version = std::move(reply.version),
                .instance = std::move(reply.instance),
                .ram_directory = std::move(reply.ram_directory),
                .page_kind = std::move(reply.page_kind),
                .pid = reply.pid,
                .uptime_ms = reply.uptime_ms,
                .sessions = reply.sessions,
                .features = std::move(reply.features),
                .tiers = {}};
  for (const auto& [name, tier] : reply.tiers) status.tiers.emplace(name, tier_of(tier));
  return status;
}

Result<void> Broker::set_pinned(const std::string& model, bool pinned) {
  MODELBROKER_ASSIGN(Link* const link, this->link());
  MODELBROKER_TRY(link->call<wire::PinReply>(pinned ? "model.pin" : "model.unpin",
                                             wire::ModelName{client::name_or_path(model)}, Deadline(kShort)));
  return {};
}

Result<void> Broker::pin(const std::string& model) { return set_pinned(model, true); }
Result<void> Broker::unpin(const std::string& model) { return set_pinned(model, false); }

Result<std::uint64_t> Broker::cancel(const std::string& model) {
  MODELBROKER_ASSIGN(Link* const link, this->link());
  MODELBROKER_ASSIGN(auto reply, link->call<wire::CancelReply>(
                                     "model.cancel", wire::ModelName{client::name_or_path(model)}, Deadline(kShort)));
  return reply.cancelled;
}

std::string Broker::endpoint() const { return link_->endpoint().broker(); }

}  // namespace modelbroker
