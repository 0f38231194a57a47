// Where a broker's sockets are. The environment is changed here: each case is a process of its own.
#include "wire/endpoint.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <vector>

namespace modelbroker::wire {
namespace {

class EndpointTest : public ::testing::Test {
 protected:
  EndpointTest() {
    ::unsetenv("MODELBROKER_ENDPOINT");
    ::unsetenv("XDG_RUNTIME_DIR");
  }
  // The run directories of the endpoints to try, for short comparisons.
  static std::vector<std::string> tried(const std::string& explicit_endpoint) {
    std::vector<std::string> directories;
    const auto endpoints = endpoints_to_try(explicit_endpoint);
    if (!endpoints) return {endpoints.error().message};
    for (const Endpoint& endpoint : *endpoints) directories.push_back(endpoint.run_directory);
    return directories;
  }
};

// Another user than root while it lives, where that is possible.
class AsNobody {
 public:
  AsNobody() : changed_(::geteuid() == 0 && ::seteuid(65534) == 0) {}
  ~AsNobody() {
    if (changed_ && ::seteuid(0) == 0) ::prctl(PR_SET_DUMPABLE, 1);  // the leak sanitizer needs it
  }
  AsNobody(const AsNobody&) = delete;
  AsNobody& operator=(const AsNobody&) = delete;
  [[nodiscard]] static bool works() { return ::geteuid() != 0; }

 private:
  bool changed_;
};

TEST_F(EndpointTest, TheSocketsLieInTheRunDirectory) {
  const auto endpoint = Endpoint::in("/run/x");
  ASSERT_TRUE(endpoint) << endpoint.error().message;
  EXPECT_EQ(endpoint->broker_path(), "/run/x/broker.sock");
  EXPECT_EQ(endpoint->broker(), "ipc:///run/x/broker.sock");
  EXPECT_EQ(endpoint->fds(), "/run/x/fds.sock");
}

TEST_F(EndpointTest, ParsesWhatItWrites) {
  for (const char* const directory : {"/run/modelbroker", "/a",
                                      "/with space/gr\xc3\xbc\xc3\x9f"
                                      "e",
                                      "/a/broker.sock"}) {
    const auto parsed = Endpoint::parse(Endpoint{directory}.broker());
    ASSERT_TRUE(parsed) << parsed.error().message;
    EXPECT_EQ(parsed->run_directory, directory);
  }
}

TEST_F(EndpointTest, OtherFormsAreRefused) {
  for (const char* const bad :
       {"", "ipc://", "ipc:///broker.sock", "broker.sock", "/run/x/broker.sock", "tcp://127.0.0.1:5555", "ipc:///run/x",
        "ipc:///run/x/fds.sock", "ipc:///run/x/broker.sock/", "ipc://run/x/broker.sock", "ipc:///run/xbroker.sock",
        "IPC:///run/x/broker.sock", " ipc:///run/x/broker.sock"}) {
    const auto parsed = Endpoint::parse(bad);
    ASSERT_FALSE(parsed) << bad;
    EXPECT_EQ(parsed.error().code, ErrorCode::kInvalidArgument);
    EXPECT_NE(parsed.error().message.find(bad[0] == 'i' && bad[6] == 'r' ? "absolute" : "ipc:///"), std::string::npos)
        << parsed.error().message;
  }
}

TEST_F(EndpointTest, ARunDirectoryIsAbsolute) {
  for (const char* const bad : {"", "run", "./run", "~/run"}) {
    EXPECT_EQ(Endpoint::in(bad).error().code, ErrorCode::kInvalidArgument) << bad;
  }
}

TEST_F(EndpointTest, TheSocketsPathMustFitIntoTheKernelsAddress) {
  // 107 bytes with "/broker.sock", which has 12.
  EXPECT_TRUE(Endpoint::in("/" + std::string(94, 'x')));
  const auto refused = Endpoint::in("/" + std::string(95, 'x'));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(refused.error().message.find("108 bytes"), std::string::npos) << refused.error().message;
  EXPECT_NE(refused.error().message.find("--run-directory"), std::string::npos);
  EXPECT_FALSE(Endpoint::parse("ipc:///" + std::string(95, 'x') + "/broker.sock"));
}

TEST_F(EndpointTest, RootsRunDirectoryIsTheMachines) {
  if (::geteuid() != 0) GTEST_SKIP() << "only as root";
  ::setenv("XDG_RUNTIME_DIR", "/run/user/0", 1);
  EXPECT_EQ(default_run_directory(), "/run/modelbroker");
  EXPECT_EQ(tried(""), std::vector<std::string>{"/run/modelbroker"});
}

TEST_F(EndpointTest, AUsersRunDirectoryIsTheUsers) {
  const AsNobody nobody;
  if (!AsNobody::works()) GTEST_SKIP() << "cannot become another user";
  const std::string fallback = "/tmp/modelbroker-" + std::to_string(::geteuid());
  EXPECT_EQ(default_run_directory(), fallback);
  EXPECT_EQ(tried(""), (std::vector<std::string>{fallback, "/run/modelbroker"}));
  ::setenv("XDG_RUNTIME_DIR", "", 1);
  EXPECT_EQ(default_run_directory(), fallback);
  ::setenv("XDG_RUNTIME_DIR", "/run/user/7", 1);
  EXPECT_EQ(default_run_directory(), "/run/user/7/modelbroker");
  EXPECT_EQ(tried(""), (std::vector<std::string>{"/run/user/7/modelbroker", "/run/modelbroker"}));
}

TEST_F(EndpointTest, AChosenEndpointIsTheOnlyOne) {
  EXPECT_EQ(tried("ipc:///a/broker.sock"), std::vector<std::string>{"/a"});
  ::setenv("MODELBROKER_ENDPOINT", "ipc:///b/broker.sock", 1);
  EXPECT_EQ(tried(""), std::vector<std::string>{"/b"});
  EXPECT_EQ(tried("ipc:///a/broker.sock"), std::vector<std::string>{"/a"});
  ::setenv("MODELBROKER_ENDPOINT", "/b", 1);
  EXPECT_EQ(endpoints_to_try("").error().code, ErrorCode::kInvalidArgument);
  ::setenv("MODELBROKER_ENDPOINT", "", 1);
  EXPECT_EQ(tried("").back(), "/run/modelbroker");
}

TEST_F(EndpointTest, ALongHomeIsRefusedAndNotCut) {
  const AsNobody nobody;
  if (!AsNobody::works()) GTEST_SKIP() << "cannot become another user";
  ::setenv("XDG_RUNTIME_DIR", ("/" + std::string(200, 'x')).c_str(), 1);
  EXPECT_EQ(endpoints_to_try("").error().code, ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace modelbroker::wire
