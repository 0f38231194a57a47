// torch_sum FILE: prints each tensor's name, dtype and sum; the weights are gone by then, but for the tensors.
#include <modelbroker/broker.h>
#include <modelbroker/torch.h>

#include <iostream>
#include <map>

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  std::unordered_map<std::string, at::Tensor> state;
  const std::byte* first = nullptr;
  {
    auto broker = modelbroker::Broker::connect();
    if (!broker) return std::cerr << broker.error().message << '\n', 1;
    const auto weights = broker->attach(argv[1]);
    if (!weights) return std::cerr << weights.error().message << '\n', 1;
    auto tensors = modelbroker::to_torch(*weights);
    if (!tensors) return std::cerr << tensors.error().message << '\n', 1;
    state = std::move(*tensors);
    first = weights->tensors()->front().bytes.data();
  }
  bool shared = false;
  for (const auto& [name, tensor] : std::map<std::string, at::Tensor>(state.begin(), state.end())) {
    shared = shared || tensor.data_ptr() == static_cast<const void*>(first);
    std::cout << name << ' ' << tensor.dtype() << ' ' << tensor.sizes() << ' '
              << tensor.to(at::kDouble).sum().item<double>() << '\n';
  }
  std::cout << (shared ? "shared" : "copied") << '\n';
}
