// SourceFixture: a BlockFixture with safetensors files on a disk, as far as this machine has one.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

#include "broker/formats/directory.h"
#include "tests/support/block_fixture.h"
#include "tests/support/safetensors_file.h"

namespace modelbroker::testing {

class SourceFixture : public BlockFixture {
 protected:
  explicit SourceFixture(const std::string& disabled = "") : BlockFixture(disabled) {}

  // One tensor of `size` known bytes that begins at `phase` modulo 4096.
  void write_source(std::uint64_t size, std::uint64_t phase, const std::string& metadata = "pt") const {
    std::string header = R"({"__metadata__":{"format":")" + metadata + R"("},)" + u8_tensor("weight", 0, size) + "}";
    while ((8 + header.size()) % kPage != phase) header += ' ';
    std::string data(size, '\0');
    for (std::uint64_t i = 0; i < size; ++i) data[i] = static_cast<char>(payload_byte(i));
    write_file(source_, safetensors_bytes(header, data));
    age_source();
  }
  // So that whatever happens to the file from now on shows in its time, whatever the clock's step is.
  void age_source() const {
    const std::array<timespec, 2> past{timespec{1'600'000'000, 5}, timespec{1'600'000'000, 5}};
    ASSERT_EQ(::utimensat(AT_FDCWD, source_.c_str(), past.data(), 0), 0);
  }
  // Changes nothing but the file's ctime; again and again, until the clock has made its step.
  void touch_ctime_of_source() const {
    const auto now = [&] { return identify(*os_, open_source(source_).get(), source_).value().ctime_ns; };
    for (const std::int64_t before = now(); now() == before;) ASSERT_EQ(::chmod(source_.c_str(), 0600), 0);
  }
  // From now on a read of it has to go to the disk, if it lies on one.
  void forget_source() const {
    const Fd file = open_source(source_);
    ASSERT_TRUE(file);
    ASSERT_EQ(::fsync(file.get()), 0);
    (void)::posix_fadvise(file.get(), 0, 0, POSIX_FADV_DONTNEED);
  }
  void overwrite_source(std::uint64_t offset, std::string_view bytes) const {
    const Fd file(::open(source_.c_str(), O_WRONLY | O_CLOEXEC));
    ASSERT_EQ(::pwrite(file.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset)),
              static_cast<ssize_t>(bytes.size()));
  }
  [[nodiscard]] Directory directory_of_source() const {
    auto directory = read_directory(*os_, open_source(source_).get(), source_);
    if (!directory) throw std::runtime_error(directory.error().message);
    return std::move(*directory);
  }

  const TempDirectory disk_{std::filesystem::temp_directory_path().string()};
  const std::string source_ = disk_ / "model.safetensors";
};

}  // namespace modelbroker::testing
