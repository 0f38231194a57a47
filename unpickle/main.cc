// modelbroker-unpickle FILE: prints where each tensor of a PyTorch file lies. Runs nothing that the file says.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <new>

#include "shm/fd.h"
#include "unpickle/answer.h"
#include "unpickle/byte_source.h"
#include "unpickle/torch_file.h"

namespace {

using modelbroker::ErrorCode;
using modelbroker::Fd;
using modelbroker::Result;
using modelbroker::unpickle::TorchFile;

Result<TorchFile> read(const char* path) {
  const Fd file(::open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!file) return modelbroker::fail_errno(errno, "opening the file");
  struct stat facts {};
  if (::fstat(file.get(), &facts) != 0) return modelbroker::fail_errno(errno, "opening the file");
  if (!S_ISREG(facts.st_mode)) return modelbroker::fail(ErrorCode::kInvalidArgument, "it is not a regular file");
  const modelbroker::unpickle::FileSource source(file.get(), static_cast<std::uint64_t>(facts.st_size));
  try {
    return modelbroker::unpickle::read_torch_file(source);
  } catch (const std::bad_alloc&) {
    return modelbroker::fail(ErrorCode::kUnimplemented, "reading it needs more memory than is given to it");
  }
}

}  // namespace

int main(int argc, char** argv) {
  constexpr int kUsage = 2;
  if (argc != 2) {
    std::fputs("usage: modelbroker-unpickle FILE\n", stderr);
    return kUsage;
  }
  const auto file = read(argv[1]);
  const std::string text = modelbroker::unpickle::answer(file);
  const bool written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0;
  return file && written ? 0 : 1;
}
