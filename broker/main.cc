// The only place with argv and exit.
#include <fcntl.h>
#include <unistd.h>

#include "broker/cli/command_line.h"

namespace {

// Who starts us without one of them would have our output in the next file or socket that we open.
void fill_standard_descriptors() {
  for (const int standard : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (::fcntl(standard, F_GETFD) < 0) (void)::open("/dev/null", O_RDWR);  // the lowest that is free
  }
}

}  // namespace

int main(int argc, char** argv) {
  fill_standard_descriptors();
  return modelbroker::cli::run_command_line(argc, argv);
}
