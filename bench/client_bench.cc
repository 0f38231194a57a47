// The C++ client's calls, one after another.
//
// Usage: client_bench ping ENDPOINT AMOUNT             samples of round trips (bench/samples.h)
//        client_bench attach ENDPOINT MODEL AMOUNT     samples of attaches: leased, opened and mapped, nothing touched
//        client_bench clients ENDPOINT COUNT AMOUNT    so many clients at once; prints requests and seconds
#include <fcntl.h>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "bench/samples.h"
#include "cpp_client/connection.h"
#include "shm/mapping.h"

namespace {

using namespace modelbroker;
using namespace modelbroker::bench;
using client::Connection;

constexpr client::Timeout kTimeout{10000};

template <class T>
T must(Result<T> result) {
  if (!result) die(result.error().message);
  return std::move(*result);
}

class Client {
 public:
  explicit Client(const std::string& endpoint)
      : os_(make_plain_os()), connection_(must(Connection::connect(*os_, {.endpoint = endpoint}))) {}

  void ping() { (void)must(connection_.request<wire::SessionPingReply>("session.ping", wire::Empty{}, kTimeout)); }
  void attach(const std::string& model) {
    wire::Attach asked;
    asked.model = model;
    auto reply = must(connection_.request<wire::AttachReply>("model.attach", asked, kTimeout));
    lease_ = reply.lease;
    for (const auto& block : reply.blocks) {
      const auto file = os_->open(block.path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW, 0);
      if (!file) die(block.path);
      mappings_.push_back(must(Mapping::map(*os_, file->get(), block.size, Mapping::Kind::kPrivate)));
    }
  }
  void detach() {
    mappings_.clear();
    (void)must(connection_.request<wire::DetachReply>("model.detach", wire::Detach{.lease = lease_}, kTimeout));
  }

 private:
  std::unique_ptr<Os> os_;
  Connection connection_;
  std::uint64_t lease_ = 0;
  std::vector<Mapping> mappings_;
};

void clients(const std::string& endpoint, int count, const Amount& amount) {
  std::atomic<std::uint64_t> requests{0};
  const auto began = Clock::now();
  std::vector<std::jthread> threads;
  threads.reserve(static_cast<std::size_t>(count));
  for (int i = 0; i < count; ++i) {
    threads.emplace_back([&] {
      Client client(endpoint);
      requests += take(amount, [&] { client.ping(); }).size();
    });
  }
  threads.clear();
  std::printf("%lu %.6f\n", requests.load(), std::chrono::duration<double>(Clock::now() - began).count());
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  const std::string what = words.empty() ? "" : words[0];
  if (what == "ping" && words.size() == 3) {
    Client client(words[1]);
    write(take(Amount::parse(words[2]), [&] { client.ping(); }));
  } else if (what == "attach" && words.size() == 4) {
    Client client(words[1]);
    write(take(
        Amount::parse(words[3]), [&] { client.attach(words[2]); }, [&] { client.detach(); }));
  } else if (what == "clients" && words.size() == 4) {
    clients(words[1], std::stoi(words[2]), Amount::parse(words[3]));
  } else {
    std::fprintf(stderr,
                 "usage: client_bench ping ENDPOINT AMOUNT | attach ENDPOINT MODEL AMOUNT | "
                 "clients ENDPOINT COUNT AMOUNT\n");
    return 2;
  }
  return 0;
}
