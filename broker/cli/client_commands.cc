// The verbs that ask a broker.
#include <poll.h>
#include <sys/signalfd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <thread>

#include "broker/cli/commands.h"
#include "broker/cli/json.h"
#include "broker/cli/output.h"
#include "broker/ram/sizes.h"
#include "cpp_client/connection.h"
#include "cpp_client/events.h"
#include "cpp_client/paths.h"
#include "shm/block.h"

namespace modelbroker::cli {
namespace {

using client::Connection;
using client::Deadline;
using client::Timeout;

constexpr Timeout kShort{30000};  // requests that only look at the books
constexpr Timeout kNoEnd{0};      // loads: a terminal has Ctrl-C

// Empty, or what is wrong with it.
std::string is_time(const std::string& text) {
  const auto seconds = parse_seconds(text);
  constexpr double kMost = 1e9;
  if (seconds && *seconds >= 0 && *seconds <= kMost) return {};
  return "write seconds, or a number with ms, s, m, h or d, from 0 on: '" + text.substr(0, 64) + "'";
}

Os& plain_os() {
  static const std::unique_ptr<Os> os = make_plain_os();
  return *os;
}

// Text from a peer or a file, fit for a terminal.
std::string shown(const std::string& text) { return wire::printable(text, 4096); }

void print(const Json& json) { std::printf("%s\n", json.dump(2, ' ', false, Json::error_handler_t::replace).c_str()); }
void print_line(const Json& json) {
  std::printf("%s\n", json.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
}

// Runs `work` with a connection and turns its error into an exit code.
template <class Work>
int with_broker(const Common& common, Work work, const Deadline& deadline = Deadline(kNoEnd)) {
  auto connection = Connection::connect(plain_os(), {.endpoint = common.endpoint}, deadline);
  if (!connection) return report(connection.error(), common.json);
  const Result<void> outcome = work(*connection);
  return outcome ? kExitOk : report(outcome.error(), common.json);
}

// ---- load

struct LoadArguments {
  std::string path, name, type, keep_alive;
  bool pin = false, retry = false;
  std::string timeout = "0";  // none
  [[nodiscard]] Timeout deadline() const {
    return std::chrono::ceil<Timeout>(std::chrono::duration<double>(parse_seconds(timeout).value_or(0)));
  }
};

// Events tell of the load while a connection waits for it; the snapshot, of one that runs already.
void watch_progress(const Common& common, const std::string& path, const Fd& done, const Deadline& deadline) {
  ProgressLine line;
  if (!line.visible()) return;
  auto stream = client::EventStream::open(plain_os(), {.endpoint = common.endpoint}, deadline);
  while (stream) {
    const auto item = stream->next(kNoEnd, done.get());
    if (!item || !*item) return;
    if (const auto* event = std::get_if<wire::Event>(&**item)) {
      const wire::EventData& data = event->data;
      if (data.path == path) line.show("loading " + shown(data.model), data.read_bytes, data.total_bytes);
      continue;
    }
    for (const wire::ModelInfo& model : std::get<client::EventStream::Snapshot>(**item).state.models) {
      if (model.state == "loading" && model.path == path) {
        line.show("loading " + shown(model.name), model.loaded_bytes, model.payload_bytes);
      }
    }
  }
}

Result<void> load(const Common& common, Connection& connection, const LoadArguments& arguments,
                  const Deadline& deadline) {
  const std::string path = client::absolute_path(arguments.path);
  MODELBROKER_ASSIGN(const Fd file, client::open_source(plain_os(), path));
  wire::LoadModel request;
  MODELBROKER_ASSIGN(request.file, connection.offer_file(file, deadline));
  request.path = path;
  request.name = arguments.name;
  request.type = arguments.type;
  request.pin = arguments.pin;
  request.retry = arguments.retry;
  if (!arguments.keep_alive.empty()) {
    MODELBROKER_ASSIGN(const Duration keep_alive, parse_keep_alive(arguments.keep_alive));
    request.keep_alive = keep_alive < Duration(0) ? -1 : std::chrono::duration<double>(keep_alive).count();
  }
  auto done = plain_os().event_fd();
  if (!done) return fail_errno(done.error().number, "waiting for the load");
  std::thread progress = optional_thread([&] { watch_progress(common, path, *done, deadline); });
  const Timeout left(static_cast<Timeout::rep>(deadline.milliseconds()));
  const auto loaded = connection.request<wire::LoadModelReply>("model.load_model", request, left);
  plain_os().event_fd_signal(done->get());
  if (progress.joinable()) progress.join();
  if (!loaded) return tl::unexpected(loaded.error());
  if (common.json) {
    print_line(to_json(*loaded));
    return {};
  }
  const double rate = static_cast<double>(loaded->payload_bytes) / 1e9 / std::max(loaded->seconds, 1e-6);
  std::string detail = format_size(loaded->payload_bytes) + ", " + loaded->page_kind + " pages";
  char text[64];
  std::snprintf(text, sizeof text, ", %.2f s", loaded->seconds);
  detail += text;
  if (loaded->outcome == "loaded") {
    std::snprintf(text, sizeof text, ", %.1f GB/s", rate);
    detail += text;
  }
  std::printf("%s: %s (%s)\n", shown(loaded->model).c_str(), loaded->outcome.c_str(), detail.c_str());
  return {};
}

// ---- unload

Result<void> unload(const Common& common, Connection& connection, const std::string& model, bool wait) {
  wire::UnloadModel request;
  request.model = client::name_or_path(model);
  request.wait = wait;
  MODELBROKER_ASSIGN(const auto unloaded,
                     connection.request<wire::UnloadModelReply>("model.unload_model", request, wait ? kNoEnd : kShort));
  if (common.json) {
    print(to_json(unloaded));
  } else if (!unloaded.remaining_names.empty()) {
    std::printf("%s: name withdrawn; the weights stay as '%s'\n", shown(unloaded.model).c_str(),
                shown(unloaded.remaining_names.front()).c_str());
  } else if (unloaded.draining > 0) {
    std::printf("%s: withdrawn; %s drain until their holders let go (%llu bytes)\n", shown(unloaded.model).c_str(),
                format_size(unloaded.draining).c_str(), static_cast<unsigned long long>(unloaded.draining));
  } else {
    std::printf("%s: freed %s\n", shown(unloaded.model).c_str(), format_size(unloaded.freed).c_str());
  }
  return {};
}

// ---- ls, ps, show, status

Result<void> ls(const Common& common, Connection& connection) {
  MODELBROKER_ASSIGN(const auto list, connection.request<wire::ModelListReply>("model.list", wire::Empty{}, kShort));
  Json json = Json::array();
  Table table({"NAME", "ALIASES", "TYPE", "PATH"});
  for (const wire::ModelInfo& model : list.models) {
    json.push_back({{"name", model.name}, {"aliases", model.aliases}, {"type", model.type}, {"path", model.path}});
    std::string aliases;
    for (const std::string& alias : model.aliases) aliases += (aliases.empty() ? "" : ", ") + shown(alias);
    table.add({shown(model.name), aliases.empty() ? "-" : aliases, model.type.empty() ? "-" : shown(model.type),
               shown(model.path)});
  }
  common.json ? print(json) : table.print();
  return {};
}

Json ps_entry(const wire::ModelInfo& model) {
  Json leases = Json::array();
  for (const wire::LeaseHolder& lease : model.leases) leases.push_back({{"pid", lease.pid}, {"uid", lease.uid}});
  return {{"name", model.name},
          {"state", model.state},
          {"block", model.block},
          {"generation", model.generation},
          {"bytes", model.bytes},
          {"page_kind", model.page_kind},
          {"leases", leases},
          {"pinned", model.pinned},
          {"keep_alive", model.keep_alive},
          {"expires_at", to_json(model.expires_at)}};
}

// "in 290 s", or "-" for a model that stays.
std::string expiry_text(const wire::ModelInfo& model) {
  if (!model.expires_at) return model.keep_alive < 0 ? "-" : "when unused";
  const double now = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  return "in " + std::to_string(static_cast<long long>(std::max(0.0, *model.expires_at - now))) + " s";
}

Result<void> ps(const Common& common, Connection& connection) {
  MODELBROKER_ASSIGN(auto list, connection.request<wire::ModelListReply>("model.list", wire::Empty{}, kShort));
  Json json = Json::array();
  Table table({"NAME", "STATE", "SIZE", "PAGES", "PINNED", "EXPIRES", "LEASES (PIDS)", "GENERATION", "BLOCK"});
  std::ranges::move(list.draining, std::back_inserter(list.models));
  for (const wire::ModelInfo& model : list.models) {
    json.push_back(ps_entry(model));
    std::string pids;
    for (const wire::LeaseHolder& lease : model.leases) pids += " " + std::to_string(lease.pid);
    table.add({shown(model.name), model.state,
               format_size(model.state == "loading" ? model.payload_bytes : model.bytes), model.page_kind,
               model.pinned ? "yes" : "no", expiry_text(model), std::to_string(model.leases.size()) + pids,
               std::to_string(model.generation), model.block});
  }
  common.json ? print(json) : table.print();
  return {};
}

Json tensor_entry(const TensorEntry& tensor) {
  return {{"name", tensor.name},
          {"dtype", tensor.dtype},
          {"shape", tensor.shape},
          {"offset", tensor.offset},
          {"bytes", tensor.size}};
}

std::string shape_text(const std::vector<std::uint64_t>& shape) {
  std::string text;
  for (const std::uint64_t dimension : shape) text += (text.empty() ? "" : ",") + std::to_string(dimension);
  return "[" + text + "]";
}

// Names, dtypes and shapes stand in the block itself: attach and look.
Result<Manifest> read_manifest(Connection& connection, const std::string& model) {
  wire::Attach request;
  request.model = model;
  request.load = false;
  MODELBROKER_ASSIGN(const auto attached, connection.request<wire::AttachReply>("model.attach", request, kShort));
  if (attached.blocks.empty()) return fail(ErrorCode::kInternal, "the broker granted no block");
  MODELBROKER_ASSIGN(const Fd block, connection.open_block(attached.blocks.front().block));
  MODELBROKER_ASSIGN(const BlockView view, BlockView::map(plain_os(), block, Access::kReadOnly));
  return view.read_manifest();
}

Result<void> show(const Common& common, Connection& connection, const std::string& word, bool tensors) {
  const std::string model = client::name_or_path(word);
  MODELBROKER_ASSIGN(const auto found,
                     connection.request<wire::ModelGetReply>("model.get", wire::ModelName{model}, kShort));
  Json json = to_json(found.model);
  Manifest manifest;
  if (tensors) {
    MODELBROKER_ASSIGN(manifest, read_manifest(connection, model));
    json["tensors"] = Json::array();
    for (const TensorEntry& tensor : manifest.tensors) json["tensors"].push_back(tensor_entry(tensor));
    json["metadata"] = manifest.metadata;
  }
  if (common.json) {
    print(json);
    return {};
  }
  Table facts({"FIELD", "VALUE"});
  for (const auto& [key, value] : json.items()) {
    if (key == "tensors" && tensors) continue;
    facts.add({key, shown(value.is_string() ? value.get<std::string>()
                                            : value.dump(-1, ' ', false, Json::error_handler_t::replace))});
  }
  facts.print();
  if (!tensors) return {};
  std::printf("\n");
  Table table({"TENSOR", "DTYPE", "SHAPE", "OFFSET", "BYTES"});
  for (const TensorEntry& tensor : manifest.tensors) {
    table.add({shown(tensor.name), tensor.dtype, shape_text(tensor.shape), std::to_string(tensor.offset),
               std::to_string(tensor.size)});
  }
  table.print();
  return {};
}

Result<void> set_pinned(const Common& common, Connection& connection, const std::string& model, bool pinned) {
  MODELBROKER_ASSIGN(const auto reply,
                     connection.request<wire::PinReply>(pinned ? "model.pin" : "model.unpin",
                                                        wire::ModelName{client::name_or_path(model)}, kShort));
  if (common.json) {
    print(to_json(reply));
  } else {
    std::printf("%s: %s\n", shown(reply.model).c_str(), reply.pinned ? "pinned" : "not pinned");
  }
  return {};
}

Result<void> cancel(const Common& common, Connection& connection, const std::string& model) {
  MODELBROKER_ASSIGN(const auto reply, connection.request<wire::CancelReply>(
                                           "model.cancel", wire::ModelName{client::name_or_path(model)}, kShort));
  if (common.json) {
    print(to_json(reply));
  } else {
    std::printf("%s: cancelled for %llu\n", shown(model).c_str(), static_cast<unsigned long long>(reply.cancelled));
  }
  return {};
}

Result<void> status(const Common& common, Connection& connection) {
  MODELBROKER_ASSIGN(const auto reply, connection.request<wire::StatusReply>("cache.status", wire::Empty{}, kShort));
  if (common.json) {
    print(to_json(reply));
    return {};
  }
  std::printf("modelbroker %s, pid %llu, instance %s, up %.0f s, %llu sessions\n", reply.version.c_str(),
              static_cast<unsigned long long>(reply.pid), reply.instance.c_str(),
              static_cast<double>(reply.uptime_ms) / 1000, static_cast<unsigned long long>(reply.sessions));
  std::printf("blocks in %s, %s pages\n", reply.ram_directory.c_str(), reply.page_kind.c_str());
  Table table({"TIER", "LIMIT", "RESERVED", "MADE", "DRAINING", "PINNED", "LEASED", "MODELS", "LEASES", "HITS",
               "MISSES", "LOADS", "EVICTIONS"});
  for (const auto& [name, tier] : reply.tiers) {
    table.add({name, format_size(tier.limit), format_size(tier.reserved), format_size(tier.made),
               format_size(tier.draining), format_size(tier.pinned), format_size(tier.leased),
               std::to_string(tier.models), std::to_string(tier.leases), std::to_string(tier.hits),
               std::to_string(tier.misses), std::to_string(tier.loads), std::to_string(tier.evictions)});
  }
  table.print();
  for (const auto& [feature, there] : reply.features) {
    if (!there) std::printf("this kernel lacks %s: the second way is used\n", feature.c_str());
  }
  return {};
}

}  // namespace

void add_client_commands(CLI::App& app, Common& common, Action& action) {
  const auto verb = [&](const char* name, const char* text, const char* examples) {
    CLI::App* const command = app.add_subcommand(name, text);
    command->add_flag("--json", common.json, "print JSON");
    command->footer(std::string("Examples:\n") + examples);
    return command;
  };
  const auto model_of = [](CLI::App* command) {
    auto model = std::make_shared<std::string>();
    command->add_option("MODEL", *model, "name, alias or path")->required();
    return model;
  };

  auto* const load_command = verb("load", "load a safetensors file once, for every worker",
                                  "  modelbroker load ./model.safetensors --name m\n"
                                  "  modelbroker load /models/vae.sft --type vae --pin --json");
  auto arguments = std::make_shared<LoadArguments>();
  load_command->add_option("FILE", arguments->path, "a .safetensors or .sft file")->required();
  load_command->add_option("--name", arguments->name, "what to call it (default: the file's stem)");
  load_command->add_option("--type", arguments->type, "what it is: unet, vae, lora, ... (kept, not interpreted)");
  load_command->add_flag("--pin", arguments->pin, "never evict it");
  load_command->add_flag("--retry", arguments->retry,
                         "load it although the broker died twice in a row while it loaded this file");
  load_command->add_option("--keep-alive", arguments->keep_alive,
                           "evict it so long after its last use: 300, 5m, 2h; -1 for ever (default: the broker's)");
  load_command
      ->add_option("--timeout", arguments->timeout,
                   "seconds to wait, also for room in a full budget (default: no end, but no waiting for room)")
      ->check(&is_time);
  load_command->callback([&common, &action, arguments] {
    action = [&common, arguments] {
      const Deadline deadline(arguments->deadline());
      return with_broker(
          common, [&](Connection& connection) { return load(common, connection, *arguments, deadline); }, deadline);
    };
  });

  auto* const unload_command = verb("unload", "withdraw a model; its memory is freed when nobody has it mapped",
                                    "  modelbroker unload m\n  modelbroker unload m --wait");
  auto unload_model = model_of(unload_command);
  auto wait = std::make_shared<bool>(false);
  unload_command->add_flag("--wait", *wait, "return when the bytes are free");
  unload_command->callback([&common, &action, unload_model, wait] {
    action = [&common, unload_model, wait] {
      return with_broker(common,
                         [&](Connection& connection) { return unload(common, connection, *unload_model, *wait); });
    };
  });

  auto* const show_command =
      verb("show", "all that is known of one model", "  modelbroker show m\n  modelbroker show m --tensors");
  auto show_model = model_of(show_command);
  auto tensors = std::make_shared<bool>(false);
  show_command->add_flag("--tensors", *tensors, "its tensors too");
  show_command->callback([&common, &action, show_model, tensors] {
    action = [&common, show_model, tensors] {
      return with_broker(common,
                         [&](Connection& connection) { return show(common, connection, *show_model, *tensors); });
    };
  });

  for (const bool pinned : {true, false}) {
    auto* const command = pinned ? verb("pin", "keep a model whatever comes", "  modelbroker pin m")
                                 : verb("unpin", "let a model be evicted again", "  modelbroker unpin m");
    auto model = model_of(command);
    command->callback([&common, &action, model, pinned] {
      action = [&common, model, pinned] {
        return with_broker(common,
                           [&](Connection& connection) { return set_pinned(common, connection, *model, pinned); });
      };
    });
  }

  auto* const cancel_command = verb("cancel", "cancel a load that is running", "  modelbroker cancel m");
  auto cancel_model = model_of(cancel_command);
  cancel_command->callback([&common, &action, cancel_model] {
    action = [&common, cancel_model] {
      return with_broker(common, [&](Connection& connection) { return cancel(common, connection, *cancel_model); });
    };
  });

  using Look = Result<void> (*)(const Common&, Connection&);
  const auto look = [&](const char* name, const char* text, const char* examples, Look run) {
    verb(name, text, examples)->callback([&common, &action, run] {
      action = [&common, run] {
        return with_broker(common, [&](Connection& connection) { return run(common, connection); });
      };
    });
  };
  look("ls", "names, aliases and sources of loaded models", "  modelbroker ls", &ls);
  look("ps", "what is resident, in which block, and who holds it", "  modelbroker ps --json", &ps);
  look("status", "the broker and its budget", "  modelbroker status --json", &status);
}

}  // namespace modelbroker::cli
