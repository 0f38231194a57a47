#include "cuda_ipc/device_id.h"

#include <gtest/gtest.h>

namespace modelbroker {
namespace {

TEST(DeviceId, IsAUuidOrAHostDevice) {
  const std::string uuid = "GPU-8f2c0b1e-12ab-34cd-56ef-0123456789ab";
  EXPECT_EQ(DeviceId::parse(uuid)->text(), uuid);
  EXPECT_FALSE(DeviceId::parse(uuid)->is_host());
  EXPECT_EQ(DeviceId::parse("GPU-8F2C0B1E-12AB-34CD-56EF-0123456789AB")->text(), uuid);
  for (const char* const host : {"host:0", "host:7", "host:10", "host:999"}) {
    EXPECT_EQ(DeviceId::parse(host)->text(), host);
    EXPECT_TRUE(DeviceId::parse(host)->is_host());
  }
  EXPECT_EQ(*DeviceId::parse("host:0"), *DeviceId::parse("host:0"));
  EXPECT_NE(*DeviceId::parse("host:0"), *DeviceId::parse("host:1"));
}

TEST(DeviceId, IsNothingElse) {
  for (const char* const text : {"",
                                 "cpu",
                                 "cuda",
                                 "cuda:0",
                                 "0",
                                 "host",
                                 "host:",
                                 "host:-1",
                                 "host:00",
                                 "host:01",
                                 "host:1000",
                                 "host:1 ",
                                 "Host:0",
                                 "host:0/../x",
                                 "GPU-",
                                 "GPU-8f2c0b1e",
                                 "gpu-8f2c0b1e-12ab-34cd-56ef-0123456789ab",
                                 "8f2c0b1e-12ab-34cd-56ef-0123456789ab",
                                 "GPU-8f2c0b1e-12ab-34cd-56ef-0123456789ag",
                                 "GPU-8f2c0b1e-12ab-34cd-56ef-0123456789ab0",
                                 "GPU-8f2c0b1e012ab-34cd-56ef-0123456789ab",
                                 "MIG-8f2c0b1e-12ab-34cd-56ef-0123456789ab",
                                 "host:0\n"}) {
    const auto refused = DeviceId::parse(text);
    ASSERT_FALSE(refused) << text;
    EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument) << text;
    EXPECT_NE(refused.error().message.find("GPU-<uuid>"), std::string::npos) << text;
  }
}

}  // namespace
}  // namespace modelbroker
