// The verbs that say what is there: ls, ps, show, status.
#include <CLI/CLI.hpp>
#include <chrono>
#include <cmath>
#include <cstdio>

#include "broker/base/sizes.h"
#include "broker/cli/ask.h"
#include "cpp_client/paths.h"
#include "shm/block.h"

namespace modelbroker::cli {
namespace {

using client::Connection;

constexpr std::size_t kScreen = 80;  // columns

std::string number(std::uint64_t value) { return std::to_string(value); }

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + shown(word);
  return text.empty() ? "-" : text;
}

// "90 s", "45 min", "3 h", "5 d": whole numbers of what fits.
std::string duration_text(double seconds) {
  constexpr double kMinute = 60, kHour = 3600, kDay = 86400;
  const auto in = [&](double unit, const char* name) {
    return std::to_string(static_cast<long long>(std::max(0.0, seconds) / unit)) + name;
  };
  if (seconds < 2 * kMinute) return in(1, " s");
  if (seconds < 2 * kHour) return in(kMinute, " min");
  return seconds < 2 * kDay ? in(kHour, " h") : in(kDay, " d");
}

double now() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

// While it loads, and while it is only remembered, it has no block.
std::uint64_t size_of(const wire::ModelInfo& model) { return model.blocks.empty() ? model.payload_bytes : model.bytes; }

// ---- ls

Result<void> ls(const Common& common, Connection& connection, bool all) {
  MODELBROKER_ASSIGN(const auto list,
                     connection.request<wire::ModelListReply>("model.list", wire::ModelList{all}, kShort));
  Json json = Json::array();
  Table table({"NAME", "ALIASES", "TYPE", "SIZE", "STATE", "PATH"});
  for (const wire::ModelInfo& model : list.models) {
    json.push_back({{"name", model.name},
                    {"aliases", model.aliases},
                    {"type", model.type},
                    {"bytes", size_of(model)},
                    {"state", model.state},
                    {"path", model.path}});
    table.add({shown(model.name), joined(model.aliases), model.type.empty() ? "-" : shown(model.type),
               format_size(size_of(model)), model.state, shown(model.path)});
  }
  common.json ? print(json) : table.print();
  return {};
}

// ---- ps

std::string block_text(const wire::ModelInfo& model) {
  if (model.blocks.size() > 1) return number(model.blocks.size()) + " blocks";
  return model.block.empty() ? "-" : model.block;
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
          {"blocks", to_json(model.blocks)},
          {"leases", leases},
          {"pinned", model.pinned},
          {"keep_alive", model.keep_alive},
          {"expires_at", to_json(model.expires_at)}};
}

std::string expiry_text(const wire::ModelInfo& model) {
  if (model.pinned) return "pinned";
  if (model.expires_at) return "in " + duration_text(*model.expires_at - now());
  return model.keep_alive < 0 ? "-" : "when unused";
}

Result<void> ps(const Common& common, Connection& connection, bool wide) {
  MODELBROKER_ASSIGN(auto list, connection.request<wire::ModelListReply>("model.list", wire::ModelList{}, kShort));
  Json json = Json::array();
  std::vector<std::string> heading{"NAME", "STATE", "SIZE", "PAGES", "EXPIRES", "LEASES"};
  if (wide) heading.insert(heading.end(), {"PIDS", "GENERATION", "BLOCK"});
  Table table(heading);
  std::ranges::move(list.draining, std::back_inserter(list.models));
  for (const wire::ModelInfo& model : list.models) {
    json.push_back(ps_entry(model));
    std::vector<std::string> row{shown(model.name),      model.state,        format_size(size_of(model)),
                                 pages_of(model.blocks), expiry_text(model), number(model.leases.size())};
    if (wide) {
      std::vector<std::string> pids;
      for (const wire::LeaseHolder& lease : model.leases) pids.push_back(number(lease.pid));
      row.insert(row.end(), {joined(pids), number(model.generation), block_text(model)});
    }
    table.add(std::move(row));
  }
  common.json ? print(json) : table.print(wide ? 0 : kScreen);
  return {};
}

// ---- show

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
Result<std::vector<Manifest>> read_manifests(Connection& connection, const std::string& model) {
  wire::Attach request;
  request.model = model;
  request.load = false;
  MODELBROKER_ASSIGN(const auto attached, connection.request<wire::AttachReply>("model.attach", request, kShort));
  if (attached.blocks.empty()) return fail(ErrorCode::kInternal, "the broker granted no block");
  std::vector<Manifest> manifests;
  for (const wire::BlockGrant& grant : attached.blocks) {
    MODELBROKER_ASSIGN(const Fd block, connection.open_block(grant.block));
    MODELBROKER_ASSIGN(const BlockView view, BlockView::map(plain_os(), block, Access::kReadOnly));
    MODELBROKER_ASSIGN(Manifest manifest, view.read_manifest());
    manifests.push_back(std::move(manifest));
  }
  return manifests;
}

std::string file_name(const std::string& path) { return path.substr(path.rfind('/') + 1); }

// One line: the field's name, and its value where all values begin.
void print_fact(const char* name, const std::string& value) { std::printf("%-12s%s\n", name, value.c_str()); }

void print_facts(const wire::ModelInfo& model) {
  print_fact("name", shown(model.name));
  if (!model.aliases.empty()) print_fact("aliases", joined(model.aliases));
  if (!model.type.empty()) print_fact("type", shown(model.type));
  print_fact("file", shown(model.path));
  const std::uint64_t percent = 100 * model.loaded_bytes / std::max<std::uint64_t>(1, model.payload_bytes);
  print_fact("state", model.state + (model.state == "loading" ? ", " + number(percent) + " % read" : ""));
  if (model.state == "remembered") {
    print_fact("weights", "read again at the next attach or load");
  } else {
    print_fact("weights", format_size(model.payload_bytes) + " in " + number(model.tensors) + " tensors (" +
                              shown(model.format) + ")");
  }
  if (!model.blocks.empty()) print_fact("memory", format_size(model.bytes) + ", " + pages_of(model.blocks) + " pages");
  if (model.blocks.size() == 1) {
    print_fact("block", model.block + " (generation " + number(model.generation) + ")");
    print_fact("at", shown(model.block_path));
  } else {
    for (const wire::ModelBlock& block : model.blocks) {
      print_fact("block",
                 block.block + ", " + format_size(block.payload_bytes) + ", " + shown(file_name(block.source)));
    }
  }
  print_fact("pinned", model.pinned ? "yes" : "no");
  print_fact("keep-alive", model.keep_alive < 0 ? "until its room is needed" : duration_text(model.keep_alive));
  if (model.expires_at) print_fact("expires", "in " + duration_text(*model.expires_at - now()));
  print_fact("leases", number(model.leases.size()));
  for (const wire::LeaseHolder& lease : model.leases) {
    print_fact("", "pid " + number(lease.pid) + ", uid " + number(lease.uid) + ", for " +
                       duration_text(static_cast<double>(lease.since_ms) / 1000));
  }
}

void print_tensors(const std::vector<Manifest>& manifests) {
  std::printf("\n");
  Table table({"TENSOR", "DTYPE", "SHAPE", "SIZE", "OFFSET"});
  for (const Manifest& manifest : manifests) {
    for (const TensorEntry& tensor : manifest.tensors) {
      table.add({shown(tensor.name), tensor.dtype, shape_text(tensor.shape), format_size(tensor.size),
                 number(tensor.offset)});
    }
  }
  table.print();
}

Result<void> show(const Common& common, Connection& connection, const std::string& word, bool tensors) {
  const std::string model = client::name_or_path(word);
  MODELBROKER_ASSIGN(const auto found,
                     connection.request<wire::ModelGetReply>("model.get", wire::ModelName{model}, kShort));
  std::vector<Manifest> manifests;
  if (tensors && found.model.state == "remembered") {
    return fail(
        ErrorCode::kFailedPrecondition,
        "'" + shown(word) + "' was evicted or damaged: its tensors are known once it is loaded or attached again");
  }
  if (tensors) {
    MODELBROKER_ASSIGN(manifests, read_manifests(connection, model));
  }
  if (!common.json) {
    print_facts(found.model);
    if (tensors) print_tensors(manifests);
    return {};
  }
  Json json = to_json(found.model);
  if (tensors) {
    json["tensors"] = Json::array();
    json["metadata"] = Json::object();
    for (std::size_t i = 0; i < manifests.size(); ++i) {
      for (const TensorEntry& tensor : manifests[i].tensors) {
        json["tensors"].push_back(tensor_entry(tensor));
        json["tensors"].back()["block"] = i;
      }
      json["metadata"].update(to_json(manifests[i].metadata));
    }
  }
  print(json);
  return {};
}

// ---- status

void print_tiers(const std::map<std::string, wire::TierStatus>& tiers, bool wide) {
  std::vector<std::string> heading{"TIER", "LIMIT", "MADE", "DRAINING", "PINNED", "LEASED", "MODELS", "LEASES"};
  if (wide) heading.insert(heading.end(), {"RESERVED", "HITS", "MISSES", "LOADS", "EVICTIONS", "SCRUBBED", "DAMAGED"});
  Table table(heading);
  for (const auto& [name, tier] : tiers) {
    std::vector<std::string> row{shown(name),
                                 format_size(tier.limit),
                                 format_size(tier.made),
                                 format_size(tier.draining),
                                 format_size(tier.pinned),
                                 format_size(tier.leased),
                                 number(tier.models),
                                 number(tier.leases)};
    if (wide) {
      row.insert(row.end(), {format_size(tier.reserved), number(tier.hits), number(tier.misses), number(tier.loads),
                             number(tier.evictions), format_size(tier.scrubbed_bytes), number(tier.scrub_errors)});
    }
    table.add(std::move(row));
  }
  table.print(wide ? 0 : kScreen);
}

Result<void> status(const Common& common, Connection& connection, bool wide) {
  MODELBROKER_ASSIGN(const auto reply, connection.request<wire::StatusReply>("cache.status", wire::Empty{}, kShort));
  if (common.json) {
    print(to_json(reply));
    return {};
  }
  std::printf("modelbroker %s, pid %llu, up %s, %llu %s\n", shown(reply.version).c_str(),
              static_cast<unsigned long long>(reply.pid),
              duration_text(static_cast<double>(reply.uptime_ms) / 1000).c_str(),
              static_cast<unsigned long long>(reply.sessions), reply.sessions == 1 ? "session" : "sessions");
  std::printf("at %s\n", connection.endpoint().broker().c_str());
  std::printf("instance '%s', blocks in %s, %s pages\n", shown(reply.instance).c_str(),
              shown(reply.ram_directory).c_str(), reply.page_kind.c_str());
  print_tiers(reply.tiers, wide);
  for (const auto& [name, tier] : reply.tiers) {
    if (tier.foreign_blocks == 0) continue;
    std::printf(
        "%s: %llu blocks of another version hold %s; 'modelbroker clean' frees them when the broker has stopped\n",
        shown(name).c_str(), static_cast<unsigned long long>(tier.foreign_blocks), format_size(tier.foreign).c_str());
  }
  for (const auto& [feature, there] : reply.features) {
    if (!there) std::printf("without %s: a fallback is used ('modelbroker doctor' has more)\n", feature.c_str());
  }
  return {};
}

}  // namespace

void add_list_commands(CLI::App& app, Common& common, Action& action) {
  const auto verb = [&](const char* name, const char* text, const char* examples) {
    CLI::App* const command = add_verb(app, name, text, examples);
    add_client_flags(*command, common);
    return command;
  };

  using Look = Result<void> (*)(const Common&, Connection&, bool);
  const auto look = [&](const char* name, const char* text, const char* examples, const char* flag, const char* more,
                        Look run) {
    CLI::App* const command = verb(name, text, examples);
    auto is_set = std::make_shared<bool>(false);
    command->add_flag(flag, *is_set, more);
    command->callback([&common, &action, run, is_set] {
      action = [&common, run, is_set] {
        return with_broker(common, [&](Connection& connection) { return run(common, connection, *is_set); });
      };
    });
  };
  look("ls", "list loaded models: names, size, state, file",
       "  modelbroker ls\n  modelbroker ls --all\n  modelbroker ls --json", "--all",
       "also those that were evicted and are loaded again when they are attached", &ls);
  look("ps", "show what is in memory and how many workers use it",
       "  modelbroker ps\n  modelbroker ps --wide\n  modelbroker ps --json", "--wide",
       "whole names, the workers' pids, generation and block; may be wider than 80 columns", &ps);
  look("status", "show the broker and its memory budget",
       "  modelbroker status\n  modelbroker status --wide\n  modelbroker status --json", "--wide",
       "all counters; may be wider than 80 columns", &status);

  auto* const command = verb("show", "show everything about one model",
                             "  modelbroker show m\n  modelbroker show m --tensors\n  modelbroker show m --json");
  auto model = std::make_shared<std::string>();
  command->add_option("MODEL", *model, "name, alias or path")->required();
  auto tensors = std::make_shared<bool>(false);
  command->add_flag("--tensors", *tensors, "list its tensors too");
  command->callback([&common, &action, model, tensors] {
    action = [&common, model, tensors] {
      return with_broker(common, [&](Connection& connection) { return show(common, connection, *model, *tensors); });
    };
  });
}

}  // namespace modelbroker::cli
