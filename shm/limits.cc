#include "shm/limits.h"

#include <signal.h>
#include <sys/resource.h>

namespace modelbroker {

std::optional<std::uint64_t> file_size_limit() noexcept {
  rlimit limit{};
  if (::getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return std::nullopt;
  return limit.rlim_cur;
}

std::string file_size_advice() { return "ulimit -f unlimited, or LimitFSIZE=infinity in the unit"; }

void survive_file_size_limit() noexcept { ::signal(SIGXFSZ, SIG_IGN); }

}  // namespace modelbroker
