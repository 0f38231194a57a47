// The shipped versions: nothing happens. A file of its own, and nothing else in it: a program that has both
// functions itself takes no part of this one from the archive.
#include "shm/instruments.h"

namespace modelbroker {

void crash_point(CrashPoint /*point*/) noexcept {}

std::unique_ptr<Os> instrument(std::unique_ptr<Os> os) { return os; }

}  // namespace modelbroker
