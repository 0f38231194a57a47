// Packets at a real broker's fd socket: each is answered or the connection is closed, and whatever came, an honest
// client with a lease goes on to be served.
//
// Input: a byte whose bit 0 says that a session is opened first; then packets: a byte (bits 0 to 2: descriptors,
// bit 3: padded past the limit, bit 4: no answer awaited), a u16 length, the bytes.
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <array>
#include <cerrno>
#include <iterator>
#include <string>
#include <vector>

#include "cpp_client/connection.h"
#include "tests/support/fuzz.h"
#include "tests/support/in_process_broker.h"
#include "tests/support/safetensors_file.h"

namespace modelbroker {
namespace {

using client::Connection;
using client::Timeout;
using testing::InProcessBroker;
using testing::require;

constexpr std::size_t kTooLong = wire::kPacketLimit + 1;
constexpr int kPatienceMs = 60'000;
constexpr std::ptrdiff_t kMostDescriptors = 500;  // closed connections may lie about for a moment

template <class T>
T must(Result<T> result, std::string_view what) {
  if (!result) require(false, std::string(what) + ": " + result.error().message);
  return std::move(*result);
}

// A client that holds a model all the time.
class Honest {
 public:
  explicit Honest(InProcessBroker& broker)
      : os_(broker.os()),
        connection_(must(Connection::connect(os_, {.endpoint = broker.endpoint()}), "connects")),
        path_(broker / "m.safetensors") {
    testing::write_file(path_, testing::safetensors_bytes("{" + testing::u8_tensor("a", 0, 2) + "}", "xy"));
    file_ = testing::open_source(path_);
    wire::Attach attach;
    attach.model = path_;
    attach.file = must(connection_.offer_file(file_), "a file is taken");
    const auto attached = must(connection_.request<wire::AttachReply>("model.attach", attach, Timeout(kPatienceMs)),
                               "a model is attached");
    block_ = attached.blocks.front().block;
  }
  void is_served() {
    const Fd block = must(connection_.open_block(block_), "a block is handed out");
    require(os_.fstat(block.get()).has_value(), "a block's descriptor is one");
    wire::LoadModel load;
    load.path = path_;
    load.file = must(connection_.offer_file(file_), "a file is taken");
    must(connection_.request<wire::LoadModelReply>("model.load_model", load, Timeout(kPatienceMs)),
         "a load is answered");
  }
  [[nodiscard]] const Fd& file() const { return file_; }

 private:
  Os& os_;
  Connection connection_;
  Fd file_;
  std::string path_, block_;
};

// Waits for the answer. False: the broker closed the connection.
bool answered(Os& os, int socket) {
  pollfd item{socket, POLLIN, 0};
  int ready = ::poll(&item, 1, kPatienceMs);
  while (ready < 0 && errno == EINTR) ready = ::poll(&item, 1, kPatienceMs);  // libFuzzer's alarm
  require(ready == 1, "every packet is answered, or the connection closed");
  const auto packet = os.receive(socket, wire::kPacketLimit, wire::kPacketDescriptors);
  if (!packet || packet->bytes.empty()) return false;
  const auto reply = wire::Reply::decode(testing::text_of(packet->bytes));
  // Version 1 frames may be answered in the old form; what we can read must be well formed.
  require(reply.has_value(), "every answer is a reply");
  return true;
}

void attack(InProcessBroker& broker, int file, testing::Input input) {
  Os& os = broker.os();
  const auto socket = os.connect_seqpacket(broker / "run/fds.sock", std::chrono::seconds(10));
  require(socket.has_value(), "the broker takes connections");
  const auto send = [&](std::span<const std::byte> bytes, std::size_t descriptors) {
    const std::vector<int> passed(descriptors, file);
    return os.send(socket->get(), bytes, passed).has_value();
  };
  if ((input.number<std::uint8_t>() & 1U) != 0) {
    const std::string open = wire::encode_request({.request_id = "o", .type = "session.open"}, wire::Empty{});
    if (!send(std::as_bytes(std::span(open)), 0) || !answered(os, socket->get())) return;
  }
  while (!input.empty()) {
    const auto how = input.number<std::uint8_t>();
    const auto bytes = input.bytes(input.number<std::uint16_t>());
    std::vector<std::byte> packet(bytes.begin(), bytes.end());
    if ((how & 8U) != 0) packet.resize(kTooLong);
    if (!send(packet, how & 7U)) return;
    if ((how & 16U) == 0 && !answered(os, socket->get())) return;
  }
}

void nothing_leaks() {
  static int runs = 0;
  if (++runs % 64 != 0) return;
  const std::filesystem::directory_iterator all("/proc/self/fd");
  require(std::distance(begin(all), end(all)) < kMostDescriptors, "descriptors of attackers are closed");
}

}  // namespace
}  // namespace modelbroker

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace modelbroker;
  static InProcessBroker broker;
  static Honest honest(broker);
  attack(broker, honest.file().get(), {data, size});
  honest.is_served();
  nothing_leaks();
  return 0;
}
