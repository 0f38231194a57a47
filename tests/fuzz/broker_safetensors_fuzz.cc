// A file that somebody wants to load: refused with a typed error, or a directory whose tensors tile the data and
// whose block can be described. Input: the file (a real one, in memory).
#include <sys/mman.h>
#include <unistd.h>

#include "broker/formats/directory.h"
#include "broker/ram/loader.h"
#include "shm/dtype.h"
#include "tests/support/fuzz.h"
#include "tests/support/safetensors_file.h"

namespace modelbroker {
namespace {

using testing::require;

class File {
 public:
  File() : fd_(::memfd_create("fuzz", MFD_CLOEXEC)) { require(static_cast<bool>(fd_), "a file can be made"); }
  [[nodiscard]] Result<Directory> read(std::string_view bytes) {
    const bool written = ::ftruncate(fd_.get(), 0) == 0 &&
                         ::pwrite(fd_.get(), bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size());
    require(written, "the file can be written");
    return read_directory(*os_, fd_.get(), "the label");
  }

 private:
  const std::unique_ptr<Os> os_ = make_plain_os();
  Fd fd_;
};

void check(const Directory& directory, std::size_t file_size) {
  require(directory.payload.end() == file_size, "the payload ends with the file");
  std::uint64_t at = 0;
  for (const TensorEntry& tensor : directory.tensors) {
    require(tensor.offset == at, "tensors tile the data");
    at += tensor.size;
    require(check_tensor_size(tensor.dtype, tensor.shape, tensor.size).has_value(),
            "a tensor has the bytes of its shape, or an opaque dtype");
  }
  require(at == directory.payload.size, "tensors fill the data");
  // What was read can be published, and read back from the block by every worker.
  Manifest manifest;
  manifest.format = directory.format;
  manifest.metadata = directory.metadata;
  manifest.tensors = directory.tensors;
  const auto again = Manifest::decode(manifest.encode(), directory.payload.size);
  require(again.has_value(), "its manifest is a good one");
  require(plan_load(directory, {}).has_value(), "a block can hold it");
}

}  // namespace
}  // namespace modelbroker

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace modelbroker;
  static File file;
  const auto directory = file.read({reinterpret_cast<const char*>(data), size});
  if (directory) {
    check(*directory, size);
  } else {
    const ErrorCode code = directory.error().code;
    require(code == ErrorCode::kDataLoss || code == ErrorCode::kUnimplemented || code == ErrorCode::kInvalidArgument,
            "damage is data_loss, another format unimplemented, a file of another kind invalid_argument");
    testing::require_presentable(directory.error());
  }
  static const std::string honest_bytes = testing::safetensors_bytes("{" + testing::u8_tensor("a", 0, 2) + "}", "xy");
  const auto honest = file.read(honest_bytes);
  require(honest.has_value() && honest->tensors.size() == 1, "an honest file is read");
  return 0;
}
