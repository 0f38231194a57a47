// The names that a pickle may want, and what each is to us. Nothing is ever imported or called.
//
// Threads: constants and pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "shm/error.h"
#include "unpickle/torch_dtype.h"

namespace modelbroker::unpickle {

enum class Role : std::uint8_t {
  kRebuildTensor,     // _rebuild_tensor and _v2: the storage's class says the dtype
  kRebuildTensorV3,   // the dtype is an argument
  kRebuildParameter,  // its first argument is the tensor
  kRefusedTensor,     // a tensor that we cannot hold: refused when its name is known
  kDtype,
  kStorageClass,
  kValue,  // may be an argument, may not be called
  kInert,  // calling it makes an inert object
  kDict,   // OrderedDict
  kDefaultDict,
  kCounter,
  kSet,
  kSize,  // torch.Size: a tuple
  kByteArray,
  kEncode,  // _codecs.encode: how protocol 2 writes bytes
  kNumpyScalar,
  kReconstructor,  // copyreg._reconstructor: how protocols 0 and 1 write objects
  kPlaceholder,    // a class of a package that we do not know
};

struct NamedRole {
  Role role = Role::kValue;
  const TorchDtype* dtype = nullptr;  // of kDtype and kStorageClass
};

// invalid_argument, with the name, for each name that is not allowed.
[[nodiscard]] Result<NamedRole> look_up(std::string_view module, std::string_view name);

// What a user does about a file that holds more than tensors and plain values.
[[nodiscard]] std::string save_state_dict_remedy();

}  // namespace modelbroker::unpickle
