// embed_worker: a C++ worker that embeds sentences with a compiled network over the broker's memory.
//
// Answers each line of standard input by a line of JSON; docs/examples.md has the words.

#include <modelbroker/broker.h>

#include <cstddef>
#include <cstdint>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include <unistd.h>

#include "batch.h"
#include "network.h"
#include "process_memory.h"

namespace {

using example::Batch;
using example::Network;
using modelbroker::Error;
using modelbroker::ErrorCode;
using modelbroker::fail;
using modelbroker::Result;
using nlohmann::json;

constexpr std::string_view kUsage = R"(usage: embed_worker [options] MODEL PACKAGE

Embeds sentences with a network whose weights are the broker's. MODEL: its name with the broker, or a path.
PACKAGE: the folder that compile_model.py wrote. Standard input, a JSON object a line:
  {"input_ids": [[101, ...], ...], "attention_mask": [[1, ...], ...], "vectors": true}
Without input_ids, or with an empty line, the sentences of --tokens are embedded. {"memory": true}: what it costs.

  --endpoint ENDPOINT  of the broker (default: the usual place)
  --tokens FILE        a request like those above

  compile_model.py FOLDER minilm.compiled
  make_tokens.py FOLDER "A cat sleeps." | embed_worker FOLDER/model.safetensors minilm.compiled
)";

struct Arguments {
  std::string model, package, endpoint, tokens;
  bool help = false;
};

Result<Arguments> read_arguments(const std::vector<std::string>& words) {
  Arguments found;
  std::vector<std::string> plain;
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (words[i] == "--help") {
      found.help = true;
    } else if (words[i] == "--endpoint" || words[i] == "--tokens") {
      if (i + 1 == words.size()) return fail(ErrorCode::kInvalidArgument, words[i] + " wants a value");
      (words[i] == "--tokens" ? found.tokens : found.endpoint) = words[i + 1];
      ++i;
    } else if (words[i].starts_with("--")) {
      return fail(ErrorCode::kInvalidArgument, words[i] + " is unknown: see --help");
    } else {
      plain.push_back(words[i]);
    }
  }
  if (found.help) return found;
  if (plain.size() != 2) return fail(ErrorCode::kInvalidArgument, "name a model and a package: see --help");
  found.model = plain[0];
  found.package = plain[1];
  return found;
}

Result<json> parse(const std::string& text, const std::string& what) {
  json found = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!found.is_object()) return fail(ErrorCode::kInvalidArgument, what + " is not a JSON object");
  return found;
}

Result<Batch> batch_from_file(const std::string& path, const example::Limits& limits) {
  std::ifstream file(path);
  if (!file) return fail(ErrorCode::kNotFound, "opening '" + path + "': there is no such file to read");
  std::ostringstream text;
  text << file.rdbuf();
  MODELBROKER_ASSIGN(const json words, parse(text.str(), "'" + path + "'"));
  return example::read_batch(words, limits);
}

json describe(const Error& error) {
  return {{"error", {{"code", modelbroker::to_string(error.code)}, {"message", error.message}}}};
}

// FNV-1a, which is enough to see that bits are the same.
std::string digest(const at::Tensor& tensor) {
  std::uint64_t hash = 0xcbf29ce484222325;
  const auto* const bytes = static_cast<const std::uint8_t*>(tensor.const_data_ptr());
  for (std::size_t i = 0; i < tensor.nbytes(); ++i) hash = (hash ^ bytes[i]) * 0x100000001b3;
  std::ostringstream text;
  text << std::hex << std::setw(16) << std::setfill('0') << hash;
  return text.str();
}

json rows_of(const at::Tensor& vectors) {
  json rows = json::array();
  const float* next = vectors.const_data_ptr<float>();
  for (std::int64_t row = 0; row < vectors.size(0); ++row, next += vectors.size(1)) {
    rows.push_back(std::vector<float>(next, next + vectors.size(1)));
  }
  return rows;
}

void say(const json& words) { std::cout << words.dump() << std::endl; }

json greeting(const Network& network) {
  const example::Placement placement = network.placement();
  return {{"ready", true},
          {"pid", ::getpid()},
          {"model", network.weights().model()},
          {"generation", network.weights().generation()},
          {"shared", placement.shared.size()},
          {"shared_bytes", placement.shared_bytes},
          {"own", placement.own},
          {"grown", placement.grown}};
}

Result<json> answer(Network& network, const std::string& line, const std::optional<Batch>& usual) {
  json request = json::object();
  if (!line.empty()) {
    MODELBROKER_ASSIGN(request, parse(line, "the request"));
  }
  if (request.value("memory", json(false)) == true) {
    const example::Mapped memory = example::mapped(network.placement().shared);
    return json{{"resident", memory.resident}, {"memory", memory.proportional}, {"copied", memory.copied}};
  }
  Batch batch;
  if (usual && !request.contains("input_ids")) {
    batch = *usual;
  } else {
    MODELBROKER_ASSIGN(batch, example::read_batch(request, network.limits()));
  }
  MODELBROKER_ASSIGN(at::Tensor vectors, network.run(batch));
  vectors = vectors.contiguous();
  json found = {{"digest", digest(vectors)}, {"shape", vectors.sizes().vec()}};
  if (request.value("vectors", json(false)) == true) found["vectors"] = rows_of(vectors);
  return found;
}

Result<void> serve(const Arguments& arguments) {
  MODELBROKER_ASSIGN(modelbroker::Broker broker, modelbroker::Broker::connect({.endpoint = arguments.endpoint}));
  MODELBROKER_ASSIGN(modelbroker::Weights weights, broker.attach(arguments.model));
  MODELBROKER_ASSIGN(Network network, Network::load(arguments.package, std::move(weights)));
  std::optional<Batch> usual;
  if (!arguments.tokens.empty()) {
    MODELBROKER_ASSIGN(usual, batch_from_file(arguments.tokens, network.limits()));
  }
  say(greeting(network));
  for (std::string line; std::getline(std::cin, line);) {
    const Result<json> words = answer(network, line, usual);
    say(words ? *words : describe(words.error()));
  }
  return {};
}

}  // namespace

int main(int count, char** words) {
  Result<Arguments> arguments = read_arguments({words + 1, words + count});
  if (arguments && arguments->help) {
    std::cout << kUsage;
    return 0;
  }
  const Result<void> done = arguments ? serve(*arguments) : tl::unexpected(arguments.error());
  if (done) return 0;
  std::cerr << "error: " << modelbroker::to_string(done.error().code) << ": " << done.error().message << '\n';
  return 10 + static_cast<int>(done.error().code);  // as the broker's own command
}
