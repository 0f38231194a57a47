// Descriptors run out, in this process.
#pragma once
#include <sys/resource.h>
#include <unistd.h>

namespace modelbroker::testing {

// The lowest number that is free: the next descriptor gets it.
inline int lowest_descriptor() {
  const int lowest = ::dup(0);
  ::close(lowest);
  return lowest;
}

// While it lives, this process can open `left` descriptors more, whatever it closes.
class FewDescriptors {
 public:
  explicit FewDescriptors(rlim_t left) {
    ::getrlimit(RLIMIT_NOFILE, &usual_);
    const rlimit few{static_cast<rlim_t>(lowest_descriptor()) + left, usual_.rlim_max};
    ::setrlimit(RLIMIT_NOFILE, &few);
  }
  FewDescriptors(const FewDescriptors&) = delete;
  FewDescriptors& operator=(const FewDescriptors&) = delete;
  ~FewDescriptors() { ::setrlimit(RLIMIT_NOFILE, &usual_); }

 private:
  rlimit usual_{};
};

}  // namespace modelbroker::testing
