// sum FILE: loads it and prints, for each tensor, its name, dtype, shape and the sum of its bytes.
#include <modelbroker/broker.h>

#include <iostream>

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  auto broker = modelbroker::Broker::connect();
  if (!broker) return std::cerr << broker.error().message << '\n', 1;
  const auto weights = broker->attach(argv[1]);
  if (!weights) return std::cerr << modelbroker::to_string(weights.error().code) << '\n', 1;
  const auto tensors = weights->tensors();
  if (!tensors) return std::cerr << tensors.error().message << '\n', 1;
  for (const modelbroker::Tensor& tensor : *tensors) {
    std::uint64_t sum = 0;
    for (const std::byte byte : tensor.bytes) sum += static_cast<unsigned char>(byte);
    std::cout << tensor.name << ' ' << tensor.dtype << " [";
    for (const std::uint64_t size : tensor.shape) std::cout << ' ' << size;
    std::cout << " ] " << sum << '\n';
  }
}
