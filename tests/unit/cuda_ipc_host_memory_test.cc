// What `host` promises beyond every backend: it refuses writers who mean to, and has a second way for what a kernel
// lacks.
#include "cuda_ipc/host_memory.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cerrno>

#include "tests/support/device_peer.h"
#include "tests/support/temp_directory.h"
#include "tests/support/watchdog.h"

namespace modelbroker {
namespace {

using testing::Child;
using testing::compare;
using testing::make_sample;

constexpr std::uint64_t kTotal = 16U << 20U;
constexpr std::uint64_t kSize = 3'000'000;

class HostMemoryTest : public ::testing::TestWithParam<std::string> {
 protected:
  explicit HostMemoryTest(const std::string& disabled = "") : os_(make_os({folder_.path(), disabled})) {}

  [[nodiscard]] std::uint64_t used() const { return kTotal - device_->memory_info().value().free; }

  testing::Watchdog watchdog_;
  testing::TempDirectory folder_;
  const std::unique_ptr<Os> os_;
  const std::unique_ptr<DeviceMemory> device_ = make_host_memory(*os_, DeviceId::parse("host:1").value(), kTotal);
};

TEST_F(HostMemoryTest, SaysThatItIsNotAGpu) {
  EXPECT_EQ(device_->info().id.text(), "host:1");
  EXPECT_EQ(device_->info().name, "memory of this host, not a GPU");
  EXPECT_FALSE(device_->info().readers_can_write);
}

TEST_F(HostMemoryTest, RefusesReadersWhoMeanToWrite) {
  const auto made = make_sample(*device_, kSize, 1).value();
  const SharedMemory shared = made->share().value();
  const int fd = std::get<Fd>(shared).get();
  const auto refused = [](int expected, long result) { return result == -1 && errno == expected; };
  EXPECT_TRUE(refused(EBADF, ::pwrite(fd, "x", 1, 0)));
  EXPECT_EQ(::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
  const auto mapping = device_->open(shared, made->size()).value();
  EXPECT_TRUE(refused(EACCES, ::mprotect(reinterpret_cast<void*>(mapping->address()), 4096, PROT_READ | PROT_WRITE)));
  // Its owner may open it for writing, and still not write.
  const Fd writer(::open(("/proc/self/fd/" + std::to_string(fd)).c_str(), O_RDWR | O_CLOEXEC));
  ASSERT_TRUE(writer);
  EXPECT_TRUE(refused(EPERM, ::pwrite(writer.get(), "x", 1, 0)));
  EXPECT_TRUE(refused(EPERM, ::ftruncate(writer.get(), 0)));
  EXPECT_TRUE(refused(EPERM, ::ftruncate(writer.get(), 1 << 30)));
  EXPECT_TRUE(refused(EPERM, ::fallocate(writer.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096)));
  EXPECT_TRUE(refused(EPERM, ::fcntl(writer.get(), F_ADD_SEALS, F_SEAL_FUTURE_WRITE)));
  EXPECT_EQ(::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, writer.get(), 0), MAP_FAILED);
  EXPECT_EQ(compare(*mapping, kSize, 1), "ok");
}

TEST_F(HostMemoryTest, CountsTheForkedChildOfAReader) {
  if (!os_->features().write_lease) GTEST_SKIP() << "this kernel has no write leases here";
  auto made = make_sample(*device_, kSize, 1).value();
  const std::uint64_t size = made->size();
  auto mapping = device_->open(made->share().value(), size).value();
  Child child([&](const Child::Parent& parent) {
    parent.wait();
    parent.say(compare(*mapping, kSize, 1));
    parent.wait();
    return 0;
  });
  made.reset();
  mapping.reset();
  EXPECT_EQ(used(), size);
  child.let_go();
  EXPECT_EQ(child.hear(), "ok");
  child.kill();
  EXPECT_EQ(used(), 0U);
}

TEST_F(HostMemoryTest, AWriterElsewhereDelaysTheSharing) {
  // Nothing of ours makes such a writer: a process that opened the owner's /proc/<pid>/fd could be one.
  const auto made = make_sample(*device_, kSize, 1).value();
  void* foreign = MAP_FAILED;
  for (int fd = 3; fd < 256 && foreign == MAP_FAILED; ++fd) {
    const std::string link = "/proc/self/fd/" + std::to_string(fd);
    if (os_->readlink(AT_FDCWD, link).value_or("").find("modelbroker host:1") == std::string::npos) continue;
    foreign = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  }
  ASSERT_NE(foreign, MAP_FAILED);
  EXPECT_EQ(made->share().error().code, ErrorCode::kUnavailable);
  EXPECT_EQ(made->copy_in(0, {}).error().code, ErrorCode::kFailedPrecondition);
  ::munmap(foreign, 4096);
  const auto shared = made->share();
  ASSERT_TRUE(shared) << shared.error().message;
  EXPECT_EQ(compare(*device_->open(*shared, made->size()).value(), kSize, 1), "ok");
}

// ---- what the kernel may lack

class HostMemoryFeaturesTest : public HostMemoryTest {
 protected:
  HostMemoryFeaturesTest() : HostMemoryTest(GetParam()) {}
};

TEST_P(HostMemoryFeaturesTest, MemoryLivesItsLife) {
  auto made = make_sample(*device_, kSize, 1).value();
  const std::uint64_t size = made->size();
  {
    const auto mapping = device_->open(made->share().value(), size).value();
    EXPECT_EQ(compare(*mapping, kSize, 1), "ok");
    made.reset();
    // Without the kernel's word the owner's counts.
    EXPECT_EQ(used(), os_->features().write_lease ? size : 0U);
    EXPECT_EQ(compare(*mapping, kSize, 1), "ok");
  }
  EXPECT_EQ(used(), 0U);
}

std::string name_of(const ::testing::TestParamInfo<std::string>& info) {
  return info.param.empty() ? "nothing" : info.param;
}

INSTANTIATE_TEST_SUITE_P(Without, HostMemoryFeaturesTest,
                         ::testing::Values("", "collapse", "populate_write", "write_lease", "all"), name_of);

}  // namespace
}  // namespace modelbroker
