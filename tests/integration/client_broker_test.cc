// The C++ client against a real broker process.
#include "cpp_client/broker.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <sstream>
#include <thread>
#include <vector>

#include "cpp_client/connection.h"
#include "tests/support/broker_process.h"
#include "tests/support/child.h"
#include "tests/support/few_descriptors.h"
#include "tests/support/safetensors_file.h"
#include "tests/support/sanitized.h"
#include "tests/support/watchdog.h"

namespace modelbroker {
namespace {

using testing::Child;

constexpr std::size_t kMiB = std::size_t{1} << 20;

char byte_of(std::size_t i) { return static_cast<char>(i * 131 + i / 251); }

std::string payload_of(std::size_t size) {
  std::string bytes(size, '\0');
  for (std::size_t i = 0; i < size; ++i) bytes[i] = byte_of(i);
  return bytes;
}

class ClientBroker : public ::testing::Test {
 protected:
  // A file of two tensors: "m" of `size` bytes, then "z" of 6 F16 numbers.
  std::string write_model(const std::string& name, std::size_t size) {
    const std::string path = process_ / name;
    const std::string z = R"("z":{"dtype":"F16","shape":[2,3],"data_offsets":[)" + std::to_string(size) + "," +
                          std::to_string(size + 12) + "]}";
    const std::string header = R"({"__metadata__":{"made":"here"},)" + testing::u8_tensor("m", 0, size) + "," + z + "}";
    testing::write_file(path, testing::safetensors_bytes(header, payload_of(size + 12)));
    return path;
  }
  Broker connect() {
    auto broker = Broker::connect({.endpoint = process_.endpoint(), .timeout = Timeout(60'000)});
    if (!broker) throw std::runtime_error(broker.error().message);
    return std::move(*broker);
  }
  static Weights attach(Broker& broker, const std::string& model, const AttachOptions& options = {}) {
    auto weights = broker.attach(model, options);
    if (!weights) throw std::runtime_error(weights.error().message);
    return std::move(*weights);
  }
  static std::uint64_t leases(Broker& broker) { return broker.status().value().tiers.at("ram").leases; }
  template <class Condition>
  static void wait_until(Condition condition) {
    while (!condition()) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  static bool right(const Weights& weights, std::size_t size) {
    const auto tensor = weights.tensor("m");
    if (!tensor || tensor->bytes.size() != size) return false;
    for (std::size_t i = 0; i < size; i += 97) {
      if (static_cast<char>(tensor->bytes[i]) != byte_of(i)) return false;
    }
    return true;
  }

  const testing::Watchdog watchdog_;
  testing::BrokerProcess process_;
};

TEST_F(ClientBroker, LoadsAndAttaches) {
  Broker broker = connect();
  const auto loaded = broker.load(write_model("file.safetensors", 5 * kMiB), {.name = "model"});
  ASSERT_TRUE(loaded) << loaded.error().message;
  EXPECT_EQ(loaded->model, "model");
  EXPECT_EQ(loaded->outcome, "loaded");
  EXPECT_EQ(loaded->payload_bytes, 5 * kMiB + 12);

  const Weights weights = attach(broker, "model");
  EXPECT_EQ(weights.model(), "model");
  EXPECT_EQ(weights.generation(), loaded->generation);
  EXPECT_EQ(weights.page_kind(), loaded->page_kind);
  const auto tensors = weights.tensors();
  ASSERT_TRUE(tensors) << tensors.error().message;
  ASSERT_EQ(tensors->size(), 2U);
  EXPECT_EQ((*tensors)[0].name, "m");
  EXPECT_EQ((*tensors)[1].name, "z");
  EXPECT_EQ((*tensors)[1].dtype, "F16");
  EXPECT_EQ(std::vector<std::uint64_t>((*tensors)[1].shape.begin(), (*tensors)[1].shape.end()),
            (std::vector<std::uint64_t>{2, 3}));
  EXPECT_EQ((*tensors)[1].bytes.size(), 12U);
  EXPECT_EQ((*tensors)[1].bytes.data(), (*tensors)[0].bytes.data() + 5 * kMiB);
  EXPECT_TRUE(right(weights, 5 * kMiB));
  EXPECT_EQ(weights.metadata().value(), (std::map<std::string, std::string>{{"made", "here"}}));

  const auto missing = weights.tensor("nothing");
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code, ErrorCode::kNotFound);
  EXPECT_NE(missing.error().message.find("'nothing'"), std::string::npos);

  const auto models = broker.list();
  ASSERT_EQ(models->size(), 1U);
  EXPECT_EQ(models->front().state, "resident");
  ASSERT_EQ(models->front().leases.size(), 1U);
  EXPECT_EQ(models->front().leases.front().pid, static_cast<std::uint64_t>(::getpid()));
}

TEST_F(ClientBroker, AModelOfSeveralFilesIsOne) {
  Broker broker = connect();
  std::string map;
  for (const std::string i : {"0", "1", "2"}) {
    const std::string bytes(kMiB, i[0]);
    testing::write_file(process_ / ("part-" + i + ".safetensors"),
                        testing::safetensors_bytes("{" + testing::u8_tensor("t" + i, 0, kMiB) + "}", bytes));
    map += (map.empty() ? "\"t" : ",\"t") + i + R"(":"part-)" + i + R"(.safetensors")";
  }
  const std::string index = process_ / "big.safetensors.index.json";
  testing::write_file(index, R"({"weight_map":{)" + map + "}}");
  const auto loaded = broker.load(index);
  ASSERT_TRUE(loaded) << loaded.error().message;
  EXPECT_EQ(loaded->model, "big");
  EXPECT_EQ(loaded->block, "");
  ASSERT_EQ(loaded->blocks.size(), 3U);
  EXPECT_EQ(loaded->blocks[1].source, process_ / "part-1.safetensors");
  EXPECT_EQ(broker.list()->front().blocks.size(), 3U);
  for (const std::string& model : {std::string("big"), index}) {
    const Weights weights = attach(broker, model);
    EXPECT_EQ(weights.tensors()->size(), 3U);
    EXPECT_EQ(static_cast<char>(weights.tensor("t2")->bytes[kMiB - 1]), '2');
    EXPECT_EQ(weights.generation(), loaded->generation);
  }
  std::filesystem::remove(process_ / "part-1.safetensors");
  const auto incomplete = broker.load(index);
  ASSERT_FALSE(incomplete);
  EXPECT_EQ(incomplete.error().code, ErrorCode::kNotFound);
  std::filesystem::remove(index);
  EXPECT_EQ(attach(broker, index).model(), "big");  // the files may be gone while the weights are not
}

TEST_F(ClientBroker, ErrorsAreTheBrokers) {
  Broker broker = connect();
  EXPECT_EQ(broker.attach("nobody").error().code, ErrorCode::kNotFound);
  EXPECT_EQ(broker.load("/no/such/file").error().code, ErrorCode::kNotFound);
  EXPECT_EQ(broker.load("/dev/null").error().code, ErrorCode::kInvalidArgument);
  testing::write_file(process_ / "broken.safetensors", "x");
  EXPECT_EQ(broker.load(process_ / "broken.safetensors").error().code, ErrorCode::kDataLoss);
  EXPECT_EQ(broker.unload("nobody").error().code, ErrorCode::kNotFound);
  EXPECT_EQ(broker.pin("nobody").error().code, ErrorCode::kNotFound);
  EXPECT_EQ(Broker::connect({.endpoint = "tcp://somewhere"}).error().code, ErrorCode::kInvalidArgument);
  const auto nowhere = Broker::connect({.endpoint = "ipc:///no/such/broker.sock", .timeout = Timeout(10)});
  EXPECT_EQ(nowhere.error().code, ErrorCode::kUnavailable);
  EXPECT_NE(nowhere.error().message.find("modelbroker serve"), std::string::npos);
}

TEST_F(ClientBroker, WhatBrokersDiedOfIsLoadedByThoseAloneWhoInsist) {
  const std::string path = write_model("m.safetensors", kMiB);
  struct stat found {};
  ASSERT_EQ(::stat(path.c_str(), &found), 0);
  (void)connect();  // it serves
  process_.kill();
  std::filesystem::create_directory(process_ / "run/loads");
  std::ostringstream note;
  note << "died.2." << found.st_dev << '.' << found.st_ino << '.' << found.st_size << '.'
       << found.st_mtim.tv_sec * 1'000'000'000 + found.st_mtim.tv_nsec << ".0.0.m";
  testing::write_file(process_ / ("run/loads/" + note.str()), "");
  process_.start();
  Broker broker = connect();
  const auto refused = broker.load(path);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kFailedPrecondition) << refused.error().message;
  EXPECT_FALSE(broker.attach(path));
  EXPECT_EQ(broker.load(path, {.retry = true}).value().outcome, "loaded");
  EXPECT_TRUE(broker.attach(path));
}

TEST_F(ClientBroker, PinsAndUnloads) {
  Broker broker = connect();
  const std::string path = write_model("m.safetensors", kMiB);
  ASSERT_TRUE(broker.load(path, {.pin = true}));
  EXPECT_TRUE(broker.list()->front().pinned);
  ASSERT_TRUE(broker.unpin("m"));
  EXPECT_FALSE(broker.list()->front().pinned);
  std::optional<Weights> weights = attach(broker, path);
  const auto unloaded = broker.unload("m");
  ASSERT_TRUE(unloaded) << unloaded.error().message;
  EXPECT_GT(unloaded->draining, kMiB);
  EXPECT_TRUE(right(*weights, kMiB));
  weights.reset();
  wait_until([&] { return broker.status()->tiers.at("ram").draining == 0; });
}

TEST_F(ClientBroker, WritesStayInThePrivateMapping) {
  Broker broker = connect();
  ASSERT_TRUE(broker.load(write_model("m.safetensors", 5 * kMiB)));
  const Weights mine = attach(broker, "m");
  const Weights other = attach(broker, "m", {.mode = Mode::kReadOnly});
  const Tensor tensor = mine.tensor("m").value();
  const std::span<std::byte> bytes = mine.writable(tensor);
  ASSERT_EQ(bytes.data(), tensor.bytes.data());
  bytes[1] = ~bytes[1];
  EXPECT_NE(other.tensor("m")->bytes[1], bytes[1]);
  EXPECT_TRUE(other.writable(*other.tensor("m")).empty());
  // Not even by changing its mind.
  const auto page = reinterpret_cast<std::uintptr_t>(other.tensor("m")->bytes.data()) / 4096 * 4096;
  EXPECT_NE(::mprotect(reinterpret_cast<void*>(page), 4096, PROT_READ | PROT_WRITE), 0);
}

TEST_F(ClientBroker, TheLeaseEndsWithTheLastHolder) {
  Broker broker = connect();
  ASSERT_TRUE(broker.load(write_model("m.safetensors", kMiB)));
  std::optional<Weights> first = attach(broker, "m");
  std::optional<Weights> copy = first;
  std::shared_ptr<const void> held = first->hold();
  const std::byte* const byte = first->tensor("m")->bytes.data() + 7;
  EXPECT_EQ(leases(broker), 1U);
  first.reset();
  EXPECT_EQ(leases(broker), 1U);
  copy.reset();
  EXPECT_EQ(leases(broker), 1U);
  EXPECT_EQ(static_cast<char>(*byte), byte_of(7));
  held.reset();
  EXPECT_EQ(leases(broker), 0U);  // the next request tells it first
}

// Whether the keeper or the call tells the broker of it.
TEST_F(ClientBroker, ACallAfterAReleaseIsServedAfterItOverTheSameConnection) {
  Broker broker = connect();
  ASSERT_TRUE(broker.load(write_model("m.safetensors", kMiB)));
  const std::size_t descriptors = process_.descriptors();
  for (int i = 0; i < 300; ++i) {
    attach(broker, "m");
    ASSERT_EQ(leases(broker), 0U) << i;
  }
  EXPECT_LE(process_.descriptors(), descriptors);
}

TEST_F(ClientBroker, WeightsOutliveTheirBrokerObject) {
  Broker watcher = connect();
  std::optional<Weights> weights;
  {
    Broker broker = connect();
    ASSERT_TRUE(broker.load(write_model("m.safetensors", kMiB)));
    weights = attach(broker, "m");
  }
  EXPECT_EQ(leases(watcher), 1U);
  EXPECT_TRUE(right(*weights, kMiB));
  weights.reset();
  wait_until([&] { return leases(watcher) == 0; });
}

TEST_F(ClientBroker, ABrokerThatDiesIsMetAgain) {
  Broker broker = connect();
  ASSERT_TRUE(broker.load(write_model("m.safetensors", 5 * kMiB)));
  const Weights weights = attach(broker, "m");
  const std::string before = broker.status()->boot_id;
  for (int round = 0; round < 5; ++round) {
    process_.kill();
    EXPECT_TRUE(right(weights, 5 * kMiB));
    process_.start();
    // Without a call of ours: another client sees that the lease was stated again.
    Broker watcher = connect();
    wait_until([&] { return leases(watcher) == 1; });
    EXPECT_EQ(watcher.list()->front().leases.front().pid, static_cast<std::uint64_t>(::getpid()));
    EXPECT_NE(broker.status()->boot_id, before);
    EXPECT_TRUE(right(attach(broker, "m"), 5 * kMiB));
  }
}

TEST_F(ClientBroker, ACallThatRunsWhileTheBrokerDiesIsAnsweredByTheNext) {
  Broker broker = connect();
  ASSERT_TRUE(broker.load(write_model("m.safetensors", kMiB)));
  std::atomic<bool> stop = false;
  std::atomic<int> answered = 0;
  std::jthread asking([&] {
    while (!stop) {
      const auto weights = broker.attach("m");
      EXPECT_TRUE(weights) << weights.error().message;
      EXPECT_TRUE(weights && right(*weights, kMiB));
      ++answered;
    }
  });
  for (int round = 0; round < 10; ++round) {
    const int before = answered;
    wait_until([&] { return answered > before + 3; });
    process_.kill();
    process_.start();
  }
  stop = true;
}

TEST_F(ClientBroker, ACallThatRunsWhileTheBrokerIsStoppedIsAnsweredByTheNext) {
  Broker broker = connect();
  const std::string big = write_model("big", 150 * kMiB);
  ASSERT_TRUE(broker.load(write_model("m.safetensors", 150 * kMiB)));
  const Weights weights = attach(broker, "m");
  std::jthread asking([&] {
    const auto loaded = broker.load(big, {.timeout = Timeout(120'000)});
    EXPECT_TRUE(loaded) << loaded.error().message;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(500));  // by now it waits for room
  process_.stop();
  process_.start();
}

TEST_F(ClientBroker, ABrokerThatStaysAwayIsUnavailableWithinTheDeadline) {
  Broker broker = connect();
  ASSERT_TRUE(broker.load(write_model("m.safetensors", kMiB)));
  const Weights weights = attach(broker, "m");
  process_.kill();
  const auto gone = broker.attach("m", {.timeout = Timeout(50)});
  ASSERT_FALSE(gone);
  EXPECT_EQ(gone.error().code, ErrorCode::kUnavailable);
  EXPECT_NE(gone.error().message.find("modelbroker serve"), std::string::npos);
  EXPECT_TRUE(right(weights, kMiB));
  process_.start();
  EXPECT_TRUE(broker.status());
}

TEST_F(ClientBroker, AStoppedBrokerHoldsNoCallBeyondItsDeadline) {
  Broker broker = connect();
  const std::string path = write_model("m.safetensors", kMiB);
  ASSERT_TRUE(broker.load(path));
  const Weights weights = attach(broker, "m");
  process_.freeze();
  const auto began = std::chrono::steady_clock::now();
  const auto fresh = Broker::connect({.endpoint = process_.endpoint(), .timeout = Timeout(100)});
  const auto loaded = broker.load(path, {.timeout = Timeout(100)});
  const auto unloaded = broker.unload("m", {.timeout = Timeout(100)});
  EXPECT_LT(std::chrono::steady_clock::now() - began, std::chrono::seconds(5));
  EXPECT_TRUE(right(weights, kMiB));
  process_.thaw();
  ASSERT_FALSE(fresh || loaded || unloaded);
  EXPECT_EQ(fresh.error().code, ErrorCode::kDeadlineExceeded) << fresh.error().message;
  EXPECT_EQ(loaded.error().code, ErrorCode::kDeadlineExceeded) << loaded.error().message;
  EXPECT_EQ(unloaded.error().code, ErrorCode::kDeadlineExceeded) << unloaded.error().message;
  EXPECT_TRUE(broker.status());
}

TEST_F(ClientBroker, AnAttachThatIsGivenUpLeavesNoLease) {
  Broker broker = connect();
  ASSERT_TRUE(broker.load(write_model("m.safetensors", kMiB)));
  ASSERT_TRUE(broker.status());
  process_.freeze();
  const auto late = broker.attach("m", {.timeout = Timeout(50)});
  process_.thaw();
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code, ErrorCode::kDeadlineExceeded);
  wait_until([&] { return leases(broker) == 0; });
  ASSERT_TRUE(broker.unload("m", {.wait = true}));
}

TEST_F(ClientBroker, AnAttachThatIsGivenUpBeforeItsBrokerDiesLeavesNoLease) {
  Broker broker = connect();
  ASSERT_TRUE(broker.load(write_model("m.safetensors", kMiB)));
  std::optional<Weights> kept = attach(broker, "m");
  process_.freeze();
  EXPECT_EQ(broker.attach("m", {.timeout = Timeout(50)}).error().code, ErrorCode::kDeadlineExceeded);
  process_.kill();
  process_.start();
  ASSERT_TRUE(attach(broker, "m").tensor("m"));  // a number that is new in this session too
  wait_until([&] { return leases(broker) == 1; });
  EXPECT_TRUE(right(*kept, kMiB));
  kept.reset();
  wait_until([&] { return leases(broker) == 0; });
}

TEST_F(ClientBroker, AnAttachThatWasGivenUpBeforeItWasSentLoadsNothing) {
  Broker broker = connect();
  Broker late = connect();
  const std::string other = write_model("other.safetensors", 150 * kMiB);
  ASSERT_TRUE(broker.load(write_model("m.safetensors", 150 * kMiB)));
  ASSERT_TRUE(broker.load(other));  // in its place: there is room for one
  process_.freeze();                // and no socket of the other client's is connected yet
  const auto descriptors = [] { return std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {}); };
  const auto before = descriptors();
  EXPECT_EQ(late.attach("m", {.timeout = Timeout(1)}).error().code, ErrorCode::kDeadlineExceeded);
  wait_until([&] { return descriptors() <= before; });  // libzmq closes behind our back: it might send it yet
  process_.thaw();
  EXPECT_EQ(late.load(other)->outcome, "resident");
  EXPECT_EQ(broker.status().value().tiers.at("ram").loads, 2U);
  EXPECT_EQ(broker.list()->front().name, "other");
}

TEST_F(ClientBroker, WhatIsDroppedWhileTheNextBrokerIsToldOfItEnds) {
  Broker broker = connect();
  ASSERT_TRUE(broker.load(write_model("m.safetensors", kMiB)));
  std::vector<std::optional<Weights>> many;
  while (many.size() < 5'000) many.emplace_back(attach(broker, "m"));
  process_.kill();
  process_.start();
  for (std::optional<Weights>& weights : many) {
    weights.reset();
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
  wait_until([&] { return leases(broker) == 0; });
  ASSERT_TRUE(broker.unload("m", {.wait = true}));
}

TEST_F(ClientBroker, TooFewDescriptorsAreARefusal) {
  if (testing::kSanitized) GTEST_SKIP() << "a sanitizer opens pipes of its own, and takes none for wrong types";
  const auto expect_refusal = [](const Error& error) {
    EXPECT_EQ(error.code, ErrorCode::kResourceExhausted) << error.message;
    EXPECT_NE(error.message.find("ulimit -n"), std::string::npos) << error.message;
  };
  for (rlim_t left = 1; left < 16; ++left) {
    const testing::FewDescriptors few(left);
    const auto connected = Broker::connect({.endpoint = process_.endpoint(), .timeout = Timeout(60'000)});
    ASSERT_FALSE(connected) << left;
    expect_refusal(connected.error());
  }
  Broker broker = connect();
  ASSERT_TRUE(broker.load(write_model("m.safetensors", kMiB)));
  for (rlim_t left = 0; left < 8; ++left) {
    const testing::FewDescriptors few(left);
    if (const auto listed = broker.list(); !listed) expect_refusal(listed.error());
    const auto attached = broker.attach("m");
    EXPECT_TRUE(attached || left < 7) << left;
    EXPECT_TRUE(!attached || left > 0) << left;
    if (!attached) expect_refusal(attached.error());
  }
  EXPECT_TRUE(broker.attach("m"));
  wait_until([&] { return leases(broker) == 0; });
}

// libzmq would abort. As a user of its own: the kernel counts per user, and lets root have more.
TEST_F(ClientBroker, TooFewThreadsAreARefusal) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can act as another user";
  if (testing::kSanitized) GTEST_SKIP() << "a sanitizer has threads of its own";
  const auto said_with = [&](rlim_t left, const std::function<std::optional<Error>()>& connect) {
    testing::Child child([&](const testing::Child::Parent& parent) {
      const auto lonely = static_cast<uid_t>(40'000 + ::getpid() % 10'000);
      const rlimit few{1 + left, 1 + left};
      if (::setresuid(lonely, lonely, lonely) != 0 || ::setrlimit(RLIMIT_NPROC, &few) != 0) return 1;
      const auto error = connect();
      parent.say(error ? std::string(to_string(error->code)) + ": " + error->message : "connected");
      return 0;
    });
    const std::string said = child.hear();
    EXPECT_EQ(child.wait(), 0) << left;
    return said;
  };
  const auto refused = [](const std::string& said) {
    return said.starts_with("resource_exhausted: ") && said.find("ulimit -u") != std::string::npos;
  };
  const ConnectOptions options{.endpoint = process_.endpoint(), .timeout = Timeout(1)};
  for (rlim_t left = 0; left < 5; ++left) {
    const std::string broker = said_with(left, [&]() -> std::optional<Error> {
      auto made = Broker::connect(options);
      return made ? std::nullopt : std::optional(made.error());
    });
    EXPECT_EQ(refused(broker), left < 3) << left << ": " << broker;  // the broker does not serve that user
    const std::unique_ptr<Os> os = make_plain_os();
    const std::string connection = said_with(left, [&]() -> std::optional<Error> {
      auto made = client::Connection::connect(*os, options);
      return made ? std::nullopt : std::optional(made.error());
    });
    EXPECT_EQ(refused(connection), left < 2) << left << ": " << connection;
  }
}

TEST_F(ClientBroker, TheLongestTimeoutIsLong) {
  Broker broker = connect();
  ASSERT_TRUE(broker.load(write_model("m.safetensors", kMiB), {.timeout = Timeout::max()}));
  const auto connected = Broker::connect({.endpoint = process_.endpoint(), .timeout = Timeout::max()});
  EXPECT_TRUE(connected);
}

TEST_F(ClientBroker, ManyThreadsShareOne) {
  Broker broker = connect();
  ASSERT_TRUE(broker.load(write_model("m.safetensors", kMiB)));
  {
    std::vector<std::jthread> threads;
    for (int thread = 0; thread < 8; ++thread) {
      threads.emplace_back([&] {
        for (int i = 0; i < 50; ++i) {
          const auto weights = broker.attach("m");
          ASSERT_TRUE(weights) << weights.error().message;
          ASSERT_TRUE(right(*weights, kMiB));
          ASSERT_TRUE(broker.list());
        }
      });
    }
  }
  EXPECT_EQ(leases(broker), 0U);
}

TEST_F(ClientBroker, ManyThreadsHandInTheirFilesAtOnceAndLoadThemAll) {
  constexpr std::size_t kThreads = 128;
  std::vector<std::string> paths;
  for (std::size_t i = 0; i < kThreads; ++i) paths.push_back(write_model("m" + std::to_string(i), 1000));
  Broker broker = connect();
  const std::size_t before = process_.descriptors();
  const std::filesystem::path socket = process_ / "run/broker.sock";
  const std::filesystem::path aside = process_ / "run/aside";
  std::filesystem::rename(socket, aside);  // files come to the broker, and no request that uses them
  std::atomic<std::size_t> done = 0;       // not before all have, but where the broker has made its socket again
  std::vector<std::jthread> threads;
  for (const std::string& path : paths) {
    threads.emplace_back([&] {
      const auto loaded = broker.load(path);
      EXPECT_TRUE(loaded) << loaded.error().message;
      ++done;
    });
  }
  wait_until([&] { return done > 0 || process_.descriptors() >= before + kThreads; });
  std::filesystem::rename(aside, socket);
}

TEST_F(ClientBroker, AForkedChildHasASessionOfItsOwn) {
  Broker broker = connect();
  ASSERT_TRUE(broker.load(write_model("m.safetensors", kMiB)));
  std::optional<Weights> weights = attach(broker, "m");
  Child child([&](const Child::Parent& parent) {
    if (!right(*weights, kMiB)) return 1;
    weights.reset();  // the parent's lease: not ours to end
    const auto own = broker.attach("m");
    if (!own || !right(*own, kMiB)) return 2;
    parent.say("attached");
    parent.wait();
    return 0;
  });
  ASSERT_EQ(child.hear(), "attached");
  std::set<std::uint64_t> holders;
  const std::vector<Model> models = broker.list().value();
  for (const Holder& holder : models.front().leases) holders.insert(holder.pid);
  EXPECT_EQ(holders,
            (std::set<std::uint64_t>{static_cast<std::uint64_t>(::getpid()), static_cast<std::uint64_t>(child.pid())}));
  child.let_go();
  EXPECT_EQ(child.wait(), 0);
  wait_until([&] { return leases(broker) == 1; });
  EXPECT_TRUE(right(*weights, kMiB));
}

TEST_F(ClientBroker, AForkBesideAThreadThatDecodesLeavesTheChildItsTensors) {
  if (testing::kSanitized) GTEST_SKIP() << "a sanitizer's allocator may be locked in such a child";
  constexpr std::size_t kMany = 50'000;
  std::string header = "{";
  for (std::size_t i = 0; i < kMany; ++i) {
    header += (i == 0 ? "" : ",") + testing::u8_tensor("tensor." + std::to_string(i), i, 1);
  }
  testing::write_file(process_ / "many.safetensors", testing::safetensors_bytes(header + "}", payload_of(kMany)));
  Broker broker = connect();
  ASSERT_TRUE(broker.load(process_ / "many.safetensors", {.name = "many"}));
  for (unsigned i = 0; i < 10; ++i) {
    const Weights weights = attach(broker, "many");
    const auto all = [&] { return weights.tensors() && weights.tensors()->size() == kMany; };
    const std::jthread decodes([&] { EXPECT_TRUE(all()); });
    std::this_thread::sleep_for(std::chrono::milliseconds(i));  // one of these is in the midst of it
    Child child([&](const Child::Parent&) {
      ::alarm(60);
      return all() ? 0 : 1;
    });
    ASSERT_EQ(child.wait(), 0);
  }
}

// Anonymous memory of this process, in bytes.
std::size_t anonymous() {
  std::ifstream file("/proc/self/smaps_rollup");
  std::string word;
  std::size_t kib = 0;
  while (file >> word) {
    if (word == "Anonymous:") file >> kib;
  }
  return kib * 1024;
}

TEST_F(ClientBroker, NoWeightIsCopied) {
  if (testing::kSanitized) GTEST_SKIP() << "a sanitizer's own memory would be counted";
  constexpr std::size_t kSize = 64 * kMiB;
  Broker broker = connect();
  ASSERT_TRUE(broker.load(write_model("m.safetensors", kSize)));
  ASSERT_TRUE(broker.attach("m")->tensors());
  const std::size_t before = anonymous();
  const Weights weights = attach(broker, "m");
  const Tensor tensor = weights.tensor("m").value();
  unsigned sum = 0;
  for (std::size_t i = 0; i < kSize; i += 4096) sum += static_cast<unsigned>(tensor.bytes[i]);
  EXPECT_GT(sum, 0U);
  EXPECT_LT(anonymous(), before + kSize / 8);
  // A page that is written is: the counter counts.
  const std::span<std::byte> bytes = weights.writable(tensor);
  for (std::size_t i = 0; i < kSize; i += 4096) bytes[i] = std::byte{1};
  EXPECT_GE(anonymous(), before + kSize);
}

}  // namespace
}  // namespace modelbroker
