// The name that a model gets when nobody gave one, from its file's path alone.
//
//   any other stem                                        its stem              /w/llama.safetensors -> llama
//   model, pytorch_model, diffusion_pytorch_model,        its folder            /w/llama/model.safetensors -> llama
//   adapter_model; `.fp16` and the like do not count      a component's folder  /w/sdxl/vae/model.safetensors ->
//   sdxl/vae the same in a hub's cache                             the repository        org/name, org/name/vae one of
//   several parts of such a file                   and its stem          llama/model-00001-of-00002
//
// Threads: any. Failure: none; what a name may not have is replaced, and what is too long cut.
#pragma once

#include <string>

namespace modelbroker {

// `path` is absolute. The outcome is a valid name (valid_model_name).
[[nodiscard]] std::string default_name(const std::string& path);
// The name with this behind it, cut so that both are a valid name.
[[nodiscard]] std::string with_suffix(const std::string& name, const std::string& suffix);

}  // namespace modelbroker
