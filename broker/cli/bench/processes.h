// The processes of `modelbroker bench`: a broker of its own, and workers that answer by JSON lines.
//
// Threads: one. Failure: cancelled when a signal came (see Interrupted), else unavailable with what the process said.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "broker/cli/json.h"
#include "shm/error.h"
#include "shm/fd.h"

namespace modelbroker::cli {

// While one lives, SIGINT and SIGTERM do not end the process but what it waits for, so that all is tidied up.
class Interrupted {
 public:
  Interrupted();
  ~Interrupted();
  Interrupted(const Interrupted&) = delete;
  Interrupted& operator=(const Interrupted&) = delete;
  [[nodiscard]] static bool yes() noexcept;
};

// A child that reads lines and answers each with one of JSON. Killed at the end if it has not gone by then.
class Process {
 public:
  // `log`: where its stderr goes; "": ours.
  [[nodiscard]] static Result<Process> start(const std::vector<std::string>& words, const std::string& log = "");
  Process(Process&& other) noexcept;
  Process& operator=(Process&&) = delete;
  ~Process();

  void prompt() const;
  [[nodiscard]] Result<Json> hear();
  // Ends its input, waits; invalid if its exit status is not 0.
  [[nodiscard]] Result<void> finish();
  void signal(int number) const;
  [[nodiscard]] pid_t pid() const noexcept { return pid_; }
  // For one that is told what to do by its whole input.
  void write(const std::string& text) const;

 private:
  Process() = default;
  [[nodiscard]] int wait();
  std::string name_;
  pid_t pid_ = -1;
  Fd in_, out_;
  std::string heard_;
};

// A folder that goes with all that is in it.
class Folder {
 public:
  [[nodiscard]] static Result<Folder> below(const std::string& where);
  Folder(Folder&& other) noexcept : path_(std::exchange(other.path_, "")) {}
  Folder& operator=(Folder&&) = delete;
  ~Folder();
  [[nodiscard]] const std::string& path() const noexcept { return path_; }
  [[nodiscard]] std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  explicit Folder(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

// `modelbroker serve` on folders of its own: a broker of the user's is not disturbed, and its blocks go with it;
// the Tidier sees to the rest.
class BenchBroker {
 public:
  [[nodiscard]] static Result<BenchBroker> start(const Folder& folder);
  BenchBroker(BenchBroker&&) noexcept = default;
  BenchBroker& operator=(BenchBroker&&) = delete;
  ~BenchBroker();
  [[nodiscard]] const std::string& endpoint() const noexcept { return endpoint_; }

 private:
  BenchBroker(Process process, std::string endpoint) : process_(std::move(process)), endpoint_(std::move(endpoint)) {}
  Process process_;
  std::string endpoint_;
};

// TMPDIR, else /tmp: for what is large.
[[nodiscard]] std::string temporary_place();

}  // namespace modelbroker::cli
