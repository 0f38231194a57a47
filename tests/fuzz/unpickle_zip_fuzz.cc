// A zip archive: refused with a typed error, or its entries lie in it, side by side, with names of their own; and what
// is read of it as a file of torch lies in it too.
// Input: the file.
#include <set>
#include <string>

#include "tests/support/fuzz.h"
#include "tests/support/zip_file.h"
#include "unpickle/answer.h"
#include "unpickle/torch_file.h"
#include "unpickle/zip_directory.h"

namespace modelbroker {
namespace {

using testing::require;
using testing::require_presentable;

void check(std::span<const unpickle::ZipEntry> entries, std::uint64_t size) {
  std::set<std::string_view> names;
  std::uint64_t end = 0;
  for (const unpickle::ZipEntry& entry : entries) {
    require(names.insert(entry.name).second, "names are unique");
    require(entry.header >= end && entry.offset > entry.header, "entries lie side by side");
    require(entry.offset <= size && entry.size <= size - entry.offset, "an entry lies in the file");
    end = entry.offset + entry.size;
  }
}

void check(const Result<unpickle::TorchFile>& file, std::uint64_t size) {
  require(valid_utf8(unpickle::answer(file)), "an answer is UTF-8");
  if (!file) return require_presentable(file.error());
  for (const unpickle::TorchTensor& tensor : file->tensors) {
    require(tensor.offset <= size && tensor.size <= size - tensor.offset, "a tensor lies in the file");
  }
}

void honest_archive_is_read() {
  const std::string pickle = "}" + testing::text("w") + testing::two_floats() + "s.";
  const std::string bytes =
      testing::zip_bytes({.members = {{"x/data.pkl", pickle, true}, {"x/data/0", "12345678", true}}});
  const auto file = unpickle::read_torch_file(unpickle::MemorySource(bytes));
  require(file && file->tensors.size() == 1 && bytes.substr(file->tensors[0].offset, 8) == "12345678",
          "an honest archive is read");
}

}  // namespace
}  // namespace modelbroker

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace modelbroker;
  const unpickle::MemorySource source(std::as_bytes(std::span(data, size)));
  const auto entries = unpickle::read_zip_directory(source);
  if (entries) {
    check(*entries, size);
  } else {
    require_presentable(entries.error());
  }
  check(unpickle::read_torch_file(source), size);
  honest_archive_is_read();
  return 0;
}
