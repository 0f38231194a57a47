// Weights: one model's tensors over memory that every worker of the host shares. Nothing is copied.
//
// A handle: copies share one attach. The broker keeps the block until the last copy, and the last holder that hold()
// gave, are gone; what is mapped stays readable until then, whatever happens to the broker. In mode kPrivate a write
// stays in this process and costs the 4 KiB pages that it touches; in mode kReadOnly it is a segmentation fault.
// Threads: any may use one object; assigning to it or destroying it belongs to one.
// Failure: data_loss if the block's manifest is damaged (looked at when it is first needed), not_found.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "shm/error.h"

namespace modelbroker {

enum class Mode : std::uint8_t { kPrivate, kReadOnly };

// One tensor; all of it points into its Weights.
struct Tensor {
  std::string_view name;                 // as in the file
  std::string_view dtype;                // the safetensors word, e.g. "BF16"
  std::span<const std::uint64_t> shape;  // row-major; empty for a scalar
  std::span<const std::byte> bytes;      // aligned as in the file: usually to 8 bytes, never promised
};

class Weights {
 public:
  [[nodiscard]] const std::string& model() const noexcept;
  [[nodiscard]] std::uint64_t generation() const noexcept;
  [[nodiscard]] Mode mode() const noexcept;
  [[nodiscard]] std::string_view page_kind() const noexcept;  // "2MiB" or "4KiB"

  // In the order of the file.
  [[nodiscard]] Result<std::span<const Tensor>> tensors() const;
  [[nodiscard]] Result<Tensor> tensor(std::string_view name) const;
  // What the file says of itself ("__metadata__").
  [[nodiscard]] Result<std::map<std::string, std::string>> metadata() const;
  // The tensor's bytes to write to; empty in mode kReadOnly.
  [[nodiscard]] std::span<std::byte> writable(const Tensor& tensor) const noexcept;

  // Keeps mapping and lease for as long as it lives, for what outlives this object.
  [[nodiscard]] std::shared_ptr<const void> hold() const noexcept;

  struct Attached;  // inside

 private:
  friend class Broker;
  explicit Weights(std::shared_ptr<const Attached> attached) noexcept;
  std::shared_ptr<const Attached> attached_;
};

}  // namespace modelbroker
