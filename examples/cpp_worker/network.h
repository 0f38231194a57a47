// Network: a compiled network that computes over weights which the broker holds.
//
// The package (compile_model.py) has code and no weights. Its constants are given as tensors over the mapping, "user
// managed": the code reads them where they are. What no file holds (positions, token types) is made here.
// Threads: any may call run(); calls take turns. The weights' mapping lives as long as the network does.
// Failure: invalid_argument if the package cannot be used or is not this model's; internal if torch fails.
#pragma once

#include <ATen/core/Tensor.h>
#include <modelbroker/error.h>
#include <modelbroker/weights.h>

#include <cstddef>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "batch.h"

namespace torch::inductor {
class AOTIModelPackageLoader;  // its header takes seconds to compile
}

namespace example {

// Where the constants lie that the network computes with, as it says itself.
struct Placement {
  std::set<const void*> shared;  // addresses in the broker's memory: each is the weights' own tensor
  std::size_t shared_bytes = 0;
  std::vector<std::string> own;  // names of those in this process's memory
  std::size_t grown = 0;         // private bytes that giving them cost
};

class Network {
 public:
  [[nodiscard]] static modelbroker::Result<Network> load(const std::string& package, modelbroker::Weights weights);

  // A unit vector for each sentence: float32, [sentences, width].
  [[nodiscard]] modelbroker::Result<at::Tensor> run(const Batch& batch);

  [[nodiscard]] const Limits& limits() const noexcept { return limits_; }
  [[nodiscard]] const modelbroker::Weights& weights() const noexcept { return weights_; }
  [[nodiscard]] Placement placement() const;

 private:
  explicit Network(modelbroker::Weights weights) : weights_(std::move(weights)) {}
  // Reads the package's metadata and gives it its constants. Throws what torch and JSON throw.
  [[nodiscard]] modelbroker::Result<void> open(const std::string& package);
  [[nodiscard]] modelbroker::Result<at::Tensor> constant(const std::string& name, const nlohmann::json& about) const;

  modelbroker::Weights weights_;
  std::unordered_map<std::string, at::Tensor> constants_;            // the loader borrows them,
  std::shared_ptr<torch::inductor::AOTIModelPackageLoader> loader_;  // and so goes before them
  Limits limits_;
  std::size_t grown_ = 0;
};

}  // namespace example
