// What every backend of device memory promises (cuda_ipc/device_memory.h), whichever it is.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>
#include <ostream>

#include "cuda_ipc/host_memory.h"
#include "shm/block_format.h"
#include "tests/support/device_peer.h"
#include "tests/support/faulty_os.h"
#include "tests/support/few_descriptors.h"
#include "tests/support/temp_directory.h"
#include "tests/support/watchdog.h"

namespace modelbroker {
namespace {

using testing::Child;
using testing::compare;
using testing::DevicePeer;
using testing::FaultyOs;
using testing::make_sample;
using testing::MakeDevice;
using testing::sample_bytes;

constexpr std::uint64_t kTotal = 64U << 20U;
constexpr std::uint64_t kSize = 3'000'000;  // not a multiple of anything

struct Backend {
  std::string name;
  MakeDevice make;
  std::function<void(DeviceMapping&)> write;

  friend std::ostream& operator<<(std::ostream& out, const Backend& backend) { return out << backend.name; }
};

const Backend kHost{
    .name = "host",
    .make = [](Os& os, std::uint64_t total) { return make_host_memory(os, DeviceId::parse("host:0").value(), total); },
    .write = [](DeviceMapping& mapping) { *reinterpret_cast<volatile char*>(mapping.address() + 100) = 1; },
};

class Conformance : public ::testing::TestWithParam<Backend> {
 protected:
  [[nodiscard]] std::uint64_t free_bytes() const { return device_->memory_info().value().free; }
  [[nodiscard]] std::unique_ptr<Allocation> sample(std::uint64_t seed = 1) const {
    return make_sample(*device_, kSize, seed).value();
  }
  // Without write leases a host device frees what its owner lets go of.
  [[nodiscard]] bool sees_readers() const {
    return device_->info().backend != DeviceBackend::kHost || os_->features().write_lease;
  }
  [[nodiscard]] bool by_descriptor() const { return device_->info().backend != DeviceBackend::kLegacy; }

  testing::Watchdog watchdog_;
  testing::TempDirectory folder_;
  const std::unique_ptr<Os> os_ = make_os({folder_.path(), ""});
  DevicePeer one_{*os_, kTotal, GetParam().make, GetParam().write};
  DevicePeer two_{*os_, kTotal, GetParam().make, GetParam().write};
  const std::unique_ptr<DeviceMemory> device_ = GetParam().make(*os_, kTotal);
  const std::uint64_t free_at_first_ = free_bytes();
};

// ---- allocations

TEST_P(Conformance, TellsWhatItIs) {
  const DeviceInfo& info = device_->info();
  EXPECT_EQ(to_string(info.backend), GetParam().name);
  EXPECT_FALSE(info.name.empty());
  EXPECT_TRUE(std::has_single_bit(info.granularity) && info.granularity >= 256);
  EXPECT_EQ(info.total, kTotal);
  EXPECT_EQ(device_->memory_info()->total, kTotal);
  EXPECT_LE(free_at_first_, kTotal);
}

TEST_P(Conformance, AllocationsAreZeroedAndRoundedUp) {
  const std::uint64_t unit = device_->info().granularity;
  for (const std::uint64_t bytes : {std::uint64_t{1}, unit, unit + 1, 3 * unit - 5}) {
    const auto made = device_->create(bytes);
    ASSERT_TRUE(made) << made.error().message;
    EXPECT_EQ((*made)->size(), round_up(bytes, unit));
    EXPECT_EQ(compare(**made, 0, 0), "ok");
    EXPECT_EQ(free_bytes(), free_at_first_ - (*made)->size());
  }
  EXPECT_EQ(free_bytes(), free_at_first_);
  EXPECT_EQ(device_->create(0).error().code, ErrorCode::kInvalidArgument);
}

TEST_P(Conformance, CopiesGoWhereTheyShould) {
  const auto made = device_->create(kSize).value();
  const auto bytes = sample_bytes(2'500'001, 7);
  ASSERT_TRUE(made->copy_in(12'345, bytes));
  ASSERT_TRUE(made->copy_in(made->size() - 3, std::span(bytes).first(3)));
  ASSERT_TRUE(made->copy_in(made->size(), {}));
  ASSERT_TRUE(device_->synchronise());
  std::vector<std::byte> wanted(made->size()), found(made->size());
  std::memcpy(wanted.data() + 12'345, bytes.data(), bytes.size());
  std::ranges::copy_n(bytes.begin(), 3, wanted.end() - 3);
  ASSERT_TRUE(made->copy_out(0, found));
  EXPECT_EQ(std::memcmp(found.data(), wanted.data(), wanted.size()), 0);
  std::array<std::byte, 9> few{};
  ASSERT_TRUE(made->copy_out(12'350, few));
  EXPECT_TRUE(std::ranges::equal(few, std::span(bytes).subspan(5, 9)));
}

TEST_P(Conformance, CopiesDoNotLeaveTheMemory) {
  const auto made = device_->create(1).value();
  std::array<std::byte, 2> two{};
  const std::uint64_t largest = std::numeric_limits<std::uint64_t>::max();
  for (const std::uint64_t offset : {made->size() - 1, made->size(), made->size() + 1, largest, largest - 1}) {
    EXPECT_EQ(made->copy_in(offset, two).error().code, ErrorCode::kInvalidArgument) << offset;
    EXPECT_EQ(made->copy_out(offset, two).error().code, ErrorCode::kInvalidArgument) << offset;
  }
}

TEST_P(Conformance, CopiesFromPinnedMemory) {
  const auto bytes = sample_bytes(kSize, 3);
  const auto pin = device_->pin(bytes);
  ASSERT_TRUE(pin) << pin.error().message;
  const auto made = device_->create(kSize).value();
  ASSERT_TRUE(made->copy_in(0, bytes));
  ASSERT_TRUE(device_->synchronise());
  EXPECT_EQ(compare(*made, kSize, 3), "ok");
}

// ---- sharing

TEST_P(Conformance, ReadersInOtherProcessesSeeTheBytes) {
  const auto made = sample();
  for (DevicePeer* const peer : {&one_, &two_}) {
    EXPECT_EQ(peer->open(made->share().value(), made->size()), "ok");
    EXPECT_EQ(peer->compare(kSize, 1), "ok");
  }
  EXPECT_EQ(compare(*made, kSize, 1), "ok");
  EXPECT_EQ(free_bytes(), free_at_first_ - made->size());
}

TEST_P(Conformance, WhatIsSharedIsFinal) {
  const auto made = sample();
  EXPECT_EQ(one_.open(made->share().value(), made->size()), "ok");
  EXPECT_EQ(made->copy_in(0, sample_bytes(1, 2)).error().code, ErrorCode::kFailedPrecondition);
  EXPECT_EQ(one_.compare(kSize, 1), "ok");
}

TEST_P(Conformance, AReaderThatWritesByAccidentHarmsNobodyElse) {
  const auto made = sample();
  ASSERT_EQ(one_.open(made->share().value(), made->size()), "ok");
  ASSERT_EQ(two_.open(made->share().value(), made->size()), "ok");
  EXPECT_THAT(one_.write(), ::testing::AnyOf("refused", ""));
  EXPECT_EQ(two_.compare(kSize, 1), "ok");
  EXPECT_EQ(compare(*made, kSize, 1), "ok");
}

TEST_P(Conformance, OnlyWhatWasSharedCanBeOpened) {
  const auto made = sample();
  const SharedMemory shared = made->share().value();
  EXPECT_NE(one_.open(shared, made->size() + device_->info().granularity), "ok");
  EXPECT_NE(one_.open(IpcHandle{}, made->size()), "ok");
  EXPECT_NE(one_.open(Fd(::open("/dev/null", O_RDONLY | O_CLOEXEC)), made->size()), "ok");
  Fd unsealed = os_->memory_file("other").value();
  ASSERT_TRUE(os_->ftruncate(unsealed.get(), made->size()));
  EXPECT_NE(one_.open(std::move(unsealed), made->size()), "ok");
  EXPECT_EQ(one_.open(shared, made->size()), "ok");
  EXPECT_EQ(one_.compare(kSize, 1), "ok");
}

// ---- lifetimes

TEST_P(Conformance, MemoryLivesAsLongAsAReaderHasIt) {
  if (!by_descriptor()) return;  // its owner may not let go before the readers
  if (!sees_readers()) GTEST_SKIP() << "this kernel has no write leases here";
  auto made = sample();
  const std::uint64_t size = made->size();
  ASSERT_EQ(one_.open(made->share().value(), size), "ok");
  ASSERT_EQ(two_.open(made->share().value(), size), "ok");
  made.reset();
  EXPECT_EQ(free_bytes(), free_at_first_ - size);
  ASSERT_EQ(one_.close(), "ok");
  EXPECT_EQ(free_bytes(), free_at_first_ - size);
  EXPECT_EQ(two_.compare(kSize, 1), "ok");
  two_.kill();
  EXPECT_EQ(free_bytes(), free_at_first_);
}

TEST_P(Conformance, MemoryLivesInADescriptorAlone) {
  if (!by_descriptor()) return;  // a handle keeps no memory
  if (!sees_readers()) GTEST_SKIP() << "this kernel has no write leases here";
  auto made = sample();
  const std::uint64_t size = made->size();
  {
    const SharedMemory shared = made->share().value();
    made.reset();
    EXPECT_EQ(free_bytes(), free_at_first_ - size);
    EXPECT_EQ(one_.open(shared, size), "ok");
    EXPECT_EQ(one_.compare(kSize, 1), "ok");
    ASSERT_EQ(one_.close(), "ok");
    EXPECT_EQ(free_bytes(), free_at_first_ - size);
  }
  EXPECT_EQ(free_bytes(), free_at_first_);
}

TEST_P(Conformance, MemoryOutlivesItsOwnersDeath) {
  const SharedMemory shared = one_.make_and_share(kSize, 5);
  const std::uint64_t size = round_up(kSize, device_->info().granularity);
  ASSERT_EQ(two_.open(shared, size), "ok");
  one_.kill();
  EXPECT_EQ(two_.compare(kSize, 5), "ok");
}

TEST_P(Conformance, ANewOwnerAdoptsWhatADeadOneShared) {
  const SharedMemory shared = one_.make_and_share(kSize, 5);
  one_.kill();
  const std::uint64_t size = round_up(kSize, device_->info().granularity);
  auto adopted = device_->adopt(shared, size);
  if (!by_descriptor()) {
    EXPECT_EQ(adopted.error().code, ErrorCode::kUnimplemented);
    return;
  }
  ASSERT_TRUE(adopted) << adopted.error().message;
  EXPECT_EQ((*adopted)->size(), size);
  EXPECT_EQ(compare(**adopted, kSize, 5), "ok");
  EXPECT_EQ((*adopted)->copy_in(0, sample_bytes(1, 2)).error().code, ErrorCode::kFailedPrecondition);
  EXPECT_EQ(two_.open((*adopted)->share().value(), size), "ok");
  EXPECT_EQ(two_.compare(kSize, 5), "ok");
  EXPECT_EQ(free_bytes(), free_at_first_ - size);
  EXPECT_FALSE(device_->adopt(shared, size + 1));
}

TEST_P(Conformance, AForkedChildThatEndsTakesNothingAway) {
  auto made = sample();
  const SharedMemory shared = made->share().value();
  auto filling = device_->create(kSize).value();
  Child child([&](const Child::Parent& parent) {
    parent.say("forked");
    parent.wait();
    return 0;
  });
  ASSERT_EQ(child.hear(), "forked");
  ASSERT_TRUE(filling->copy_in(0, sample_bytes(kSize, 9)));
  ASSERT_TRUE(device_->synchronise());
  EXPECT_EQ(two_.open(filling->share().value(), filling->size()), "ok");
  EXPECT_EQ(two_.compare(kSize, 9), "ok");
  child.kill();
  EXPECT_EQ(one_.open(shared, made->size()), "ok");
  EXPECT_EQ(one_.compare(kSize, 1), "ok");
}

// ---- what runs out, what fails

TEST_P(Conformance, OutOfMemoryTellsTheNumbers) {
  const std::uint64_t unit = device_->info().granularity;
  for (const std::uint64_t bytes :
       {free_at_first_ + 1, std::uint64_t{1} << 60U, std::numeric_limits<std::uint64_t>::max()}) {
    const auto refused = device_->create(bytes);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, ErrorCode::kResourceExhausted) << refused.error().message;
    EXPECT_EQ(refused.error().details.at("needed"), bytes);
    EXPECT_EQ(refused.error().details.at("free"), free_at_first_);
    EXPECT_EQ(free_bytes(), free_at_first_);
  }
  const auto all = device_->create(round_down(free_at_first_, unit));
  ASSERT_TRUE(all) << all.error().message;
  EXPECT_EQ(device_->create(1).error().code, ErrorCode::kResourceExhausted);
}

// All that an owner does, then `device` as its successor, then a reader, in one process as far as the backend allows
// it.
Result<void> live(Os& os, const MakeDevice& make, DeviceMemory& device) {
  SharedMemory shared;
  std::uint64_t size = 0;
  {
    const auto first = make(os, kTotal);
    MODELBROKER_ASSIGN(const auto made, make_sample(*first, 3000, 1));
    MODELBROKER_TRY(made->share());
    MODELBROKER_ASSIGN(shared, made->share());
    size = made->size();
  }
  if (device.info().backend == DeviceBackend::kLegacy) return {};
  MODELBROKER_ASSIGN(const auto adopted, device.adopt(shared, size));
  MODELBROKER_ASSIGN(const auto mapping, device.open(shared, size));
  const std::string found = compare(*mapping, 3000, 1);
  if (found != "ok") return fail(ErrorCode::kInternal, found);
  return {};
}

TEST_P(Conformance, WithoutDescriptorsThereIsATypedError) {
  const auto attempt = [&] { return live(*os_, GetParam().make, *device_); };
  // The first time with all of them: a sanitizer needs some to check the type of an object that it has not seen.
  ASSERT_TRUE(attempt());
  ASSERT_FALSE(error_from_errno(EMFILE, "").message.empty());
  for (rlim_t left = 0;; ++left) {
    ASSERT_LT(left, 20U);
    const int lowest = testing::lowest_descriptor();
    Result<void> lived;
    {
      const testing::FewDescriptors few(left);
      lived = attempt();
    }
    EXPECT_EQ(testing::lowest_descriptor(), lowest);
    EXPECT_EQ(free_bytes(), free_at_first_);
    if (lived) break;
    EXPECT_EQ(lived.error().code, ErrorCode::kResourceExhausted) << lived.error().message;
    EXPECT_NE(lived.error().message.find("ulimit -n"), std::string::npos) << lived.error().message;
  }
}

TEST_P(Conformance, EveryCallFailsWithATypedErrorAndNothingLeft) {
  FaultyOs faulty(*os_);
  const auto device = GetParam().make(faulty, kTotal);
  for (const int error_number : {EIO, ENOMEM, EMFILE, EACCES, EBUSY}) {
    for (std::uint64_t call = 1;; ++call) {
      SCOPED_TRACE("call " + std::to_string(call) + " fails with " + std::strerror(error_number));
      ASSERT_LT(call, 100U);
      const int lowest = testing::lowest_descriptor();
      faulty.fail_at(call, error_number);
      const auto lived = live(faulty, GetParam().make, *device);
      const bool done = !faulty.failed_one();
      faulty.stop_failing();
      if (!lived) {
        EXPECT_EQ(lived.error().code, error_from_errno(error_number, "").code) << lived.error().message;
      }
      EXPECT_EQ(testing::lowest_descriptor(), lowest);
      EXPECT_EQ(device->memory_info().value().free, free_at_first_);
      if (done) {
        EXPECT_TRUE(lived) << lived.error().message;
        break;
      }
    }
  }
}

std::string name_of(const ::testing::TestParamInfo<Backend>& info) { return info.param.name; }

INSTANTIATE_TEST_SUITE_P(Backends, Conformance, ::testing::Values(kHost), name_of);

}  // namespace
}  // namespace modelbroker
