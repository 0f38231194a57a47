// shm/instruments.h as `modelbroker_faulty` has it: both functions do what the page of MODELBROKER_FAULTS says.
// Without that variable the program is the shipped one.
#include "shm/instruments.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "shm/fd.h"
#include "tests/support/fault_page.h"
#include "tests/support/faulty_os.h"

namespace modelbroker {
namespace {

using testing::FaultPage;

FaultPage* page = nullptr;  // set before any thread is made

FaultPage* map_page(const char* path) {
  const Fd file(::open(path, O_RDWR | O_CLOEXEC));
  struct stat found {};
  if (file && ::fstat(file.get(), &found) == 0 && static_cast<std::size_t>(found.st_size) == FaultPage::kBytes) {
    void* const mapped = ::mmap(nullptr, FaultPage::kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
    if (mapped != MAP_FAILED) return static_cast<FaultPage*>(mapped);
  }
  std::fprintf(stderr, "MODELBROKER_FAULTS='%s' is not a page that can be mapped\n", path);
  std::exit(2);
}

void tell_points() {
  std::string text;
  for (const std::string_view point : kCrashPoints) text.append(point).append("\n");
  if (text.size() >= page->points.size()) std::abort();
  text.copy(page->points.data(), text.size());
}

class PagedOs final : public testing::FaultyOs {
 public:
  explicit PagedOs(std::unique_ptr<Os> inner) : FaultyOs(*inner), inner_(std::move(inner)) {}
  std::uint64_t boottime_ns() noexcept override {
    const std::uint64_t told = page->clock_ns;
    return told != 0 ? told : FaultyOs::boottime_ns();
  }

 protected:
  int failing(const char* call) noexcept override {
    if (page->armed == 0) return 0;
    if (page->only[0] != '\0') {
      const std::string word = "," + std::string(call) + ",";
      if (std::string_view(page->only.data()).find(word) == std::string_view::npos) return 0;
    }
    const std::uint64_t number = ++page->calls;
    const std::uint64_t wanted = page->fail_at;
    if (wanted == 0 || (page->persistent != 0 ? number < wanted : number != wanted)) return 0;
    if (page->failed++ == 0) std::strncpy(page->first_failed.data(), call, page->first_failed.size() - 1);
    return static_cast<int>(page->error_number.load());
  }

 private:
  std::unique_ptr<Os> inner_;
};

}  // namespace

void crash_point(CrashPoint point) noexcept {
  if (page == nullptr || page->armed == 0 || page->crash_at == 0) return;
  if (point.name() != std::string_view(page->crash_point.data())) return;
  const std::uint64_t passed = ++page->passed;
  if (page->persistent != 0 ? passed >= page->crash_at : passed == page->crash_at) ::raise(SIGKILL);
}

std::unique_ptr<Os> instrument(std::unique_ptr<Os> os) {
  const char* const path = std::getenv("MODELBROKER_FAULTS");
  if (path == nullptr) return os;
  page = map_page(path);
  tell_points();
  return std::make_unique<PagedOs>(std::move(os));
}

}  // namespace modelbroker
