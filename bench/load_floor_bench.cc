// The floor of a load: what any loader on this machine must do, and nothing else.
//
// Usage: load_floor_bench SOURCE TARGET warm|cold|read|free|free-small [RUNS]. TARGET: a new file on a tmpfs.
//   warm, cold        makes the pages of a fresh TARGET in 2 MiB steps (MADV_COLLAPSE, else as they come), reads SOURCE
//                     into them and hashes each 16 MiB: `warm` through the page cache on all cores, `cold` past it
//                     (O_DIRECT, after dropping it) on 24 threads.
//   read              only reads, cold, into memory that is there: past the page cache with a thread a core, with
//                     eight and with 24, through it with a thread a core; the best of the four counts.
//   free, free-small  how long giving back what `warm` made takes, in 2 MiB pages and in 4 KiB pages.
// Prints one line of seconds a run. No Google Benchmark: a run is one pass over gigabytes.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

namespace {

constexpr std::size_t kStep = std::size_t{2} << 20;
constexpr std::size_t kChunk = std::size_t{16} << 20;
constexpr int kPopulateWrite = 23;
constexpr int kCollapse = 25;
constexpr unsigned kColdReaders = 24;  // as many as we

[[noreturn]] void die(const char* what) {
  std::perror(what);
  std::exit(1);
}

struct How {
  bool cold = false;    // not from the page cache
  bool direct = false;  // past it
  bool whole = true;    // pages and hashes too
  bool huge = true;     // try for 2 MiB pages
  bool free = false;    // only the end counts
  unsigned threads = 1;
};

struct Job {
  How how;
  int source = -1;
  std::size_t size = 0;
  char* target = nullptr;
  std::atomic<std::size_t> next{0};
  std::atomic<std::uint64_t> hashes{0};  // so that no hash is optimised away
};

void pull(Job& job) {
  XXH3_state_t* const state = XXH3_createState();
  for (std::size_t chunk = job.next.fetch_add(kChunk); chunk < job.size; chunk = job.next.fetch_add(kChunk)) {
    XXH3_64bits_reset(state);
    const std::size_t end = std::min(chunk + kChunk, job.size);
    for (std::size_t at = chunk; at < end; at += kStep) {
      const std::size_t size = std::min(kStep, end - at);
      if (job.how.whole && job.how.huge && madvise(job.target + at, 4096, kPopulateWrite) == 0)
        (void)madvise(job.target + at, kStep, kCollapse);
      // Direct reads want whole sectors: the tail's are cut off by the file's end.
      const std::size_t wanted = (size + 4095) / 4096 * 4096;
      for (std::size_t done = 0; done < size;) {
        const ssize_t got = pread(job.source, job.target + at + done, wanted - done, static_cast<off_t>(at + done));
        if (got <= 0) die("pread");
        done += static_cast<std::size_t>(got);
      }
      if (job.how.whole) XXH3_64bits_update(state, job.target + at, size);
    }
    job.hashes += XXH3_64bits_digest(state);
  }
  XXH3_freeState(state);
}

double run(const char* source, const char* target, How how) {
  Job job;
  job.how = how;
  job.source = open(source, O_RDONLY | O_CLOEXEC | (how.direct ? O_DIRECT : 0));
  struct stat found {};
  if (job.source < 0 || fstat(job.source, &found) != 0) die(source);
  job.size = static_cast<std::size_t>(found.st_size);
  if (how.cold && posix_fadvise(job.source, 0, 0, POSIX_FADV_DONTNEED) != 0) die("posix_fadvise");
  const std::size_t whole = (job.size + kStep - 1) / kStep * kStep;
  const int file = open(target, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (file < 0) die(target);
  if (ftruncate(file, static_cast<off_t>(whole)) != 0) die("ftruncate");
  char* const area = static_cast<char*>(mmap(nullptr, whole + kStep, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (area == MAP_FAILED) die("mmap");
  char* const aligned = area + (kStep - reinterpret_cast<std::uintptr_t>(area) % kStep) % kStep;

  auto began = std::chrono::steady_clock::now();
  void* const mapped = mmap(aligned, whole, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0);
  if (mapped == MAP_FAILED) die("mmap");
  job.target = static_cast<char*>(mapped);
  if (!how.whole) {
    for (std::size_t at = 0; at < whole; at += kStep) {
      if (madvise(job.target + at, 4096, kPopulateWrite) == 0) (void)madvise(job.target + at, kStep, kCollapse);
      for (std::size_t page = at; page < at + kStep; page += 4096) job.target[page] = 1;
    }
    began = std::chrono::steady_clock::now();
  }
  std::vector<std::jthread> threads;
  for (unsigned i = 0; i < how.threads; ++i) threads.emplace_back(pull, std::ref(job));
  threads.clear();
  const auto read = std::chrono::steady_clock::now();
  munmap(area, whole + kStep);
  close(file);
  unlink(target);
  const std::chrono::duration<double> took = how.free ? std::chrono::steady_clock::now() - read : read - began;
  close(job.source);
  return took.count();
}

double run(const char* source, const char* target, std::string_view what) {
  const unsigned cores = std::max(1U, std::thread::hardware_concurrency());
  if (what == "warm") return run(source, target, How{.threads = cores});
  if (what.starts_with("free")) return run(source, target, How{.huge = what == "free", .free = true, .threads = cores});
  const unsigned many = std::max(cores, kColdReaders);
  if (what == "cold") return run(source, target, How{.cold = true, .direct = true, .threads = many});
  return std::min({run(source, target, How{.cold = true, .direct = true, .whole = false, .threads = cores}),
                   run(source, target, How{.cold = true, .direct = true, .whole = false, .threads = 8}),
                   run(source, target, How{.cold = true, .direct = true, .whole = false, .threads = many}),
                   run(source, target, How{.cold = true, .whole = false, .threads = cores})});
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view what = argc > 3 ? argv[3] : "";
  if (what != "warm" && what != "cold" && what != "read" && what != "free" && what != "free-small") {
    std::fprintf(stderr, "usage: load_floor_bench SOURCE TARGET warm|cold|read|free|free-small [RUNS]\n");
    return 2;
  }
  const int runs = argc > 4 ? std::atoi(argv[4]) : 1;
  for (int i = 0; i < runs; ++i) std::printf("%.4f\n", run(argv[1], argv[2], what));
  return 0;
}
