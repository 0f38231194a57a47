#include "network.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>
#include <modelbroker/torch.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <exception>
#include <string_view>
#include <utility>

#include "process_memory.h"

namespace example {

using modelbroker::Error;
using modelbroker::ErrorCode;
using modelbroker::fail;
using modelbroker::Result;
using modelbroker::Weights;
using nlohmann::json;

namespace {

// compile_model.py compiles the model as a part, `m`, of what it compiles.
std::string_view name_in_file(std::string_view name) {
  if (name.starts_with("m.")) name.remove_prefix(2);
  return name;
}

// torch adds a stack trace to what it says.
std::string first_line(const std::exception& error) {
  const std::string_view text = error.what();
  return std::string(text.substr(0, text.find('\n')));
}

}  // namespace

Result<Network> Network::load(const std::string& package, Weights weights) {
  Network network(std::move(weights));
  try {
    MODELBROKER_TRY(network.open(package));
  } catch (const std::exception& error) {
    return fail(ErrorCode::kInvalidArgument,
                "'" + package + "' is not what compile_model.py writes: " + first_line(error));
  }
  return network;
}

Result<void> Network::open(const std::string& package) {
  loader_ = std::make_shared<torch::inductor::AOTIModelPackageLoader>(package);
  const auto metadata = loader_->get_metadata();
  const json limits = json::parse(metadata.at("limits"));
  limits_ = {.sentences = limits.at("sentences"), .tokens = limits.at("tokens"), .vocabulary = limits.at("vocabulary")};
  const json wanted = json::parse(metadata.at("constants"));
  for (const std::string& name : loader_->get_constant_fqns()) {
    MODELBROKER_ASSIGN(at::Tensor tensor, constant(name, wanted.at(name)));
    constants_.emplace(name, std::move(tensor));
  }
  const std::size_t before = private_bytes();
  loader_->load_constants(constants_, /*use_inactive=*/false, /*check_full_update=*/true, /*user_managed=*/true);
  const std::size_t after = private_bytes();
  grown_ = after > before ? after - before : 0;
  return {};
}

// A view of the file's tensor, which must be as the code was compiled for: torch does not look.
Result<at::Tensor> Network::constant(const std::string& name, const json& about) const {
  const auto shape = about.at("shape").get<std::vector<std::int64_t>>();
  MODELBROKER_ASSIGN(const at::ScalarType type, modelbroker::scalar_type(about.at("dtype").get<std::string>()));
  const std::string from = about.at("from");
  if (from == "zeros") return at::zeros(shape, type);
  if (from == "count") return at::arange(c10::multiply_integers(shape), type).reshape(shape);

  const std::string_view in_file = name_in_file(name);
  MODELBROKER_ASSIGN(const modelbroker::Tensor tensor, weights_.tensor(in_file));
  MODELBROKER_ASSIGN(at::Tensor view, modelbroker::to_torch(weights_, tensor));
  if (view.scalar_type() != type || view.sizes() != at::IntArrayRef(shape)) {
    return fail(ErrorCode::kInvalidArgument, "'" + weights_.model() + "' is not the model that was compiled: its " +
                                                 std::string(in_file) + " has another type or shape");
  }
  return view;
}

Result<at::Tensor> Network::run(const Batch& batch) {
  try {
    const c10::InferenceMode guard;
    return loader_->run({batch.input_ids, batch.attention_mask}).at(0);
  } catch (const std::exception& error) {
    return fail(ErrorCode::kInternal, "running the network: " + first_line(error));
  }
}

Placement Network::placement() const {
  Placement found;
  found.grown = grown_;
  for (const auto& [name, tensor] : loader_->get_runner()->extract_constants_map(/*use_inactive=*/false)) {
    const Result<modelbroker::Tensor> in_file = weights_.tensor(name_in_file(name));
    if (in_file && in_file->bytes.data() == tensor.const_data_ptr()) {
      found.shared.insert(tensor.const_data_ptr());
      found.shared_bytes += tensor.nbytes();
    } else {
      found.own.push_back(name);
    }
  }
  return found;
}

}  // namespace example
