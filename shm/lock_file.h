// LockFile: a file whose lock keeps a second broker out, for as long as the file is the one at its path.
//
// The file is never removed by us, but somebody may: then a second broker would make and lock another one. look() sees
// that and makes it again. Threads: one at a time. Failure: failed_precondition if somebody else holds the lock.
#pragma once

#include <string>

#include "shm/error.h"
#include "shm/fd.h"
#include "shm/os.h"

namespace modelbroker {

class LockFile {
 public:
  // `held`: the end of the error's message when another process holds it, what that is and what to do.
  [[nodiscard]] static Result<LockFile> take(Os& os, std::string path, std::string held);

  [[nodiscard]] const std::string& path() const noexcept { return path_; }
  // There was no such file before.
  [[nodiscard]] bool is_new() const noexcept { return is_new_; }
  // That error: somebody else holds it.
  [[nodiscard]] static bool is_held(const Error& error) { return error.details.contains("held"); }
  // True if the file was gone or another one, and is ours again. failed_precondition: another broker has it now.
  [[nodiscard]] Result<bool> look(Os& os);
  // Lets go of it as if it had never been: only of one that is new, or of an instance that has no next broker.
  void undo(Os& os) noexcept;

 private:
  LockFile(std::string path, std::string held, Fd file, bool is_new)
      : path_(std::move(path)), held_(std::move(held)), file_(std::move(file)), is_new_(is_new) {}
  std::string path_, held_;
  Fd file_;
  bool is_new_ = false;
};

}  // namespace modelbroker
