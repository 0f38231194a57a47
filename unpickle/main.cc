// modelbroker-unpickle FILE: prints where each tensor of a PyTorch file lies. Runs nothing that the file says.
//
// FILE "-" is standard input, which must be a file: the broker opens what it is given itself. The answer goes to
// standard output, best a pipe. --no-sandbox, before FILE, is for kernels that refuse the filter.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <new>
#include <string_view>

#include "unpickle/answer.h"
#include "unpickle/byte_source.h"
#include "unpickle/sandbox.h"
#include "unpickle/torch_file.h"

namespace {

using modelbroker::ErrorCode;
using modelbroker::fail;
using modelbroker::fail_errno;
using modelbroker::Result;
using modelbroker::unpickle::TorchFile;

constexpr int kUsage = 2;

// The descriptor stays open until the process ends: close() is a call that the sandbox refuses.
Result<TorchFile> read(const char* path, bool with_sandbox) {
  const int file = std::string_view(path) == "-" ? STDIN_FILENO : ::open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY);
  if (file < 0) return fail_errno(errno, "opening the file");
  struct stat facts {};
  if (::fstat(file, &facts) != 0) return fail_errno(errno, "opening the file");
  if (!S_ISREG(facts.st_mode)) return fail(ErrorCode::kInvalidArgument, "it is not a regular file");
  if (with_sandbox) MODELBROKER_TRY(modelbroker::unpickle::enter_sandbox(file, STDOUT_FILENO));
  return modelbroker::unpickle::read_torch_file(
      modelbroker::unpickle::FileSource(file, static_cast<std::uint64_t>(facts.st_size)));
}

// Without stdio, which makes calls that the sandbox refuses.
bool write_all(std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(STDOUT_FILENO, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return false;
    text.remove_prefix(static_cast<std::size_t>(written));
  }
  return true;
}

int run(const char* path, bool with_sandbox) {
  try {
    const auto file = read(path, with_sandbox);
    return write_all(modelbroker::unpickle::answer(file)) && file ? 0 : 1;
  } catch (const std::bad_alloc&) {
    constexpr std::string_view kNoMemory =
        R"({"error":{"code":"unimplemented","message":"reading it needs more memory than is given to it"}})"
        "\n";
    return write_all(kNoMemory) ? 1 : kUsage;
  }
}

}  // namespace

int main(int argc, char** argv) {
  const bool with_sandbox = argc < 2 || std::string_view(argv[1]) != "--no-sandbox";
  const int path = with_sandbox ? 1 : 2;
  if (argc != path + 1) {
    std::fputs("usage: modelbroker-unpickle [--no-sandbox] FILE\n", stderr);
    return kUsage;
  }
  ::_exit(run(argv[path], with_sandbox));
}
