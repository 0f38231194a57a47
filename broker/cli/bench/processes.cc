#include "broker/cli/bench/processes.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <utility>

#include "broker/cli/bench/tidier.h"
#include "broker/cli/programs.h"
#include "cpp_client/connection.h"
#include "shm/os.h"

namespace modelbroker::cli {
namespace {

std::atomic<bool> interrupted = false;
std::array<struct sigaction, 3> before_interruption{};
constexpr client::Timeout kStart{20'000};
constexpr std::array<int, 3> kSignals{SIGINT, SIGTERM, SIGHUP};

Error cancelled() { return {ErrorCode::kCancelled, "interrupted"}; }

// In the child: becomes the program, with our ends of the pipes as its input and output.
[[noreturn]] void become(const std::vector<std::string>& words, int in, int out, const std::string& log, pid_t parent) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(127);  // killed before we said that
  ::signal(SIGXFSZ, SIG_DFL);               // ignored by us, not by what the user measures
  ::setpgid(0, 0);                          // a terminal's Ctrl-C is for us, who end it in its turn
  ::dup2(in, STDIN_FILENO);
  ::dup2(out, STDOUT_FILENO);
  if (!log.empty()) {
    const int file = ::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    ::dup2(file, STDERR_FILENO);
  }
  std::vector<char*> arguments;
  arguments.reserve(words.size() + 1);
  for (const std::string& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  ::execvp(arguments.front(), arguments.data());
  ::_exit(127);
}

}  // namespace

Interrupted::Interrupted() {
  struct sigaction action {};
  action.sa_handler = [](int) { interrupted = true; };  // without SA_RESTART: waits end
  for (std::size_t i = 0; i < kSignals.size(); ++i) {
    struct sigaction& before = before_interruption.at(i);
    ::sigaction(kSignals.at(i), &action, &before);
    const bool by_nohup = kSignals.at(i) == SIGHUP && before.sa_handler == SIG_IGN;
    if (by_nohup) ::sigaction(SIGHUP, &before, nullptr);
  }
}

Interrupted::~Interrupted() {
  for (std::size_t i = 0; i < kSignals.size(); ++i) ::sigaction(kSignals.at(i), &before_interruption.at(i), nullptr);
}

bool Interrupted::yes() noexcept { return interrupted; }

Result<Process> Process::start(const std::vector<std::string>& words, const std::string& log) {
  std::array<int, 2> in{};
  std::array<int, 2> out{};
  if (::pipe2(in.data(), O_CLOEXEC) != 0) return fail_errno(errno, "starting " + words.front());
  Fd theirs_in(in[0]);
  Fd ours_in(in[1]);
  if (::pipe2(out.data(), O_CLOEXEC) != 0) return fail_errno(errno, "starting " + words.front());
  Fd ours_out(out[0]);
  Fd theirs_out(out[1]);
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) return fail_errno(errno, "starting " + words.front());
  if (pid == 0) become(words, theirs_in.get(), theirs_out.get(), log, parent);
  Process process;
  process.name_ = words.front();
  process.pid_ = pid;
  process.in_ = std::move(ours_in);
  process.out_ = std::move(ours_out);
  return process;
}

Process::Process(Process&& other) noexcept
    : name_(std::move(other.name_)),
      pid_(std::exchange(other.pid_, -1)),
      in_(std::move(other.in_)),
      out_(std::move(other.out_)),
      heard_(std::move(other.heard_)) {}

Process::~Process() {
  if (pid_ <= 0) return;
  signal(SIGKILL);
  (void)wait();
}

void Process::signal(int number) const { ::kill(pid_, number); }

int Process::wait() {
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
  return status;
}

void Process::write(const std::string& text) const {
  std::string_view left = text;
  while (!left.empty()) {
    const ssize_t written = ::write(in_.get(), left.data(), left.size());
    if (written <= 0 && errno != EINTR) return;  // it is gone: hear() tells
    if (written > 0) left.remove_prefix(static_cast<std::size_t>(written));
  }
}

void Process::prompt() const { write("\n"); }

Result<Json> Process::hear() {
  while (true) {
    if (const std::size_t end = heard_.find('\n'); end != std::string::npos) {
      const std::string line = heard_.substr(0, end);
      heard_.erase(0, end + 1);
      Json json = Json::parse(line, nullptr, false);
      if (json.is_object()) return json;
      continue;  // a library that talks
    }
    std::array<char, 4096> buffer{};
    const ssize_t got = ::read(out_.get(), buffer.data(), buffer.size());
    if (Interrupted::yes()) return tl::unexpected(cancelled());
    if (got == 0) return fail(ErrorCode::kUnavailable, "'" + name_ + "' ended without an answer");
    if (got < 0 && errno != EINTR) return fail_errno(errno, "hearing '" + name_ + "'");
    if (got > 0) heard_.append(buffer.data(), static_cast<std::size_t>(got));
  }
}

Result<void> Process::finish() {
  in_.reset();
  const int status = wait();
  if (Interrupted::yes()) return tl::unexpected(cancelled());
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return {};
  if (WIFEXITED(status) && WEXITSTATUS(status) == 127) {
    return fail(ErrorCode::kNotFound, "'" + name_ + "' cannot be run: name another with --python");
  }
  return fail(ErrorCode::kUnavailable, "'" + name_ + "' failed: what it said stands above");
}

std::string temporary_place() {
  const char* const chosen = std::getenv("TMPDIR");
  return chosen != nullptr && *chosen != '\0' ? chosen : "/tmp";
}

Result<Folder> Folder::below(const std::string& where) {
  std::string path = where + "/modelbroker-bench.XXXXXX";
  if (::mkdtemp(path.data()) == nullptr) return fail_errno(errno, "making a folder '" + path + "'");
  return Folder(std::move(path));
}

Folder::~Folder() {
  std::error_code ignored;
  if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
}

Result<BenchBroker> BenchBroker::start(const Folder& folder) {
  const std::string instance = bench_instance(::getpid());
  const std::string endpoint = "ipc://" + (folder / "run/broker.sock");
  MODELBROKER_ASSIGN(auto process,
                     Process::start({this_program(), "serve", "--run-directory", folder / "run", "--instance", instance,
                                     "--ram-directory", kBenchRam, "--log-level", "warning"},
                                    folder / "log"));
  BenchBroker broker(std::move(process), endpoint);
  const std::unique_ptr<Os> os = make_plain_os();
  auto answers = client::Connection::connect(*os, {.endpoint = endpoint, .timeout = kStart});
  if (answers) return broker;
  if (const auto log = os->read_text(folder / "log"); log && !log->empty()) answers.error().message = *log;
  return tl::unexpected(std::move(answers).error());
}

BenchBroker::~BenchBroker() {
  if (process_.pid() <= 0) return;
  process_.signal(SIGTERM);  // a clean stop frees the memory
  (void)process_.finish();
}

}  // namespace modelbroker::cli
