// The verbs that change what is loaded: load, unload, pin, unpin, cancel.
#include <poll.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <thread>

#include "broker/base/sizes.h"
#include "broker/cli/ask.h"
#include "cpp_client/events.h"
#include "cpp_client/paths.h"
#include "cpp_client/source_files.h"

namespace modelbroker::cli {
namespace {

using client::Connection;
using client::Deadline;
using client::Timeout;

// Empty, or what is wrong with it.
std::string is_time(const std::string& text) {
  const auto seconds = parse_seconds(text);
  constexpr double kMost = 1e9;
  if (seconds && *seconds >= 0 && *seconds <= kMost) return {};
  return "write seconds, or a number with ms, s, m, h or d, not below 0: '" + text.substr(0, 64) + "'";
}

void print_line(const Json& json) {
  std::printf("%s\n", json.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
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
  wire::LoadModel request;
  {
    MODELBROKER_ASSIGN(const auto sources, client::open_sources(plain_os(), path));
    MODELBROKER_TRY(
        client::offer_sources(sources, request, [&](const Fd& file) { return connection.offer_file(file, deadline); }));
  }
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
  std::string detail = format_size(loaded->payload_bytes);
  if (loaded->blocks.size() > 1) detail += ", " + std::to_string(loaded->blocks.size()) + " files";
  detail += ", " + pages_of(loaded->blocks) + " pages";
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

// ---- pin, cancel

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

}  // namespace

void add_client_commands(CLI::App& app, Common& common, Action& action) {
  const auto verb = [&](const char* name, const char* text, const char* examples) {
    CLI::App* const command = add_verb(app, name, text, examples);
    add_client_flags(*command, common);
    return command;
  };
  const auto model_of = [](CLI::App* command) {
    auto model = std::make_shared<std::string>();
    command->add_option("MODEL", *model, "name, alias or path of the model")->required();
    return model;
  };

  auto* const load_command = verb("load", "load a safetensors file once, for all workers",
                                  "  modelbroker load ./model.safetensors --name m\n"
                                  "  modelbroker load /models/vae.sft --type vae --pin --json\n"
                                  "  modelbroker load /models/llama/model.safetensors.index.json");
  auto arguments = std::make_shared<LoadArguments>();
  load_command
      ->add_option("FILE", arguments->path,
                   "a .safetensors or .sft file, or the *.safetensors.index.json of a sharded model")
      ->required();
  load_command->add_option("--name", arguments->name,
                           "name to load it under (default: the file's, without extension; of model.safetensors its "
                           "folder's or repository's)");
  load_command->add_option("--type", arguments->type,
                           "what kind of model it is: unet, vae, lora, ... (stored, not interpreted)");
  load_command->add_flag("--pin", arguments->pin, "never evict it");
  load_command->add_flag("--retry", arguments->retry,
                         "load it although the broker died twice in a row while it loaded this file");
  load_command->add_option(
      "--keep-alive", arguments->keep_alive,
      "evict it this long after its last use: 300, 5m, 2h; -1: never (default: the broker's setting)");
  load_command
      ->add_option("--timeout", arguments->timeout,
                   "how long to wait, also for room in a full budget: 30, 5m "
                   "(default: until it is loaded, but not for room)")
      ->check(&is_time);
  load_command->callback([&common, &action, arguments] {
    action = [&common, arguments] {
      const Deadline deadline(arguments->deadline());
      return with_broker(
          common, [&](Connection& connection) { return load(common, connection, *arguments, deadline); }, deadline);
    };
  });

  auto* const unload_command = verb("unload", "withdraw a model; its memory is freed when no process uses it any more",
                                    "  modelbroker unload m\n  modelbroker unload m --wait");
  auto unload_model = model_of(unload_command);
  auto wait = std::make_shared<bool>(false);
  unload_command->add_flag("--wait", *wait, "return when its memory is free");
  unload_command->callback([&common, &action, unload_model, wait] {
    action = [&common, unload_model, wait] {
      return with_broker(common,
                         [&](Connection& connection) { return unload(common, connection, *unload_model, *wait); });
    };
  });

  for (const bool pinned : {true, false}) {
    auto* const command = pinned ? verb("pin", "never evict this model", "  modelbroker pin m")
                                 : verb("unpin", "allow this model to be evicted again", "  modelbroker unpin m");
    auto model = model_of(command);
    command->callback([&common, &action, model, pinned] {
      action = [&common, model, pinned] {
        return with_broker(common,
                           [&](Connection& connection) { return set_pinned(common, connection, *model, pinned); });
      };
    });
  }

  auto* const cancel_command = verb("cancel", "cancel a running load", "  modelbroker cancel m");
  auto cancel_model = model_of(cancel_command);
  cancel_command->callback([&common, &action, cancel_model] {
    action = [&common, cancel_model] {
      return with_broker(common, [&](Connection& connection) { return cancel(common, connection, *cancel_model); });
    };
  });
}

}  // namespace modelbroker::cli
