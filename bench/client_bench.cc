// The C++ client's calls, one after another.
//
// Usage: client_bench ping ENDPOINT AMOUNT             samples of round trips (bench/samples.h)
//        client_bench attach ENDPOINT MODEL AMOUNT     samples of attaches: leased, opened and mapped, nothing touched
//        client_bench clients ENDPOINT COUNT AMOUNT    so many clients at once; prints requests and seconds
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bench/samples.h"
#include "cpp_client/broker.h"
#include "cpp_client/connection.h"

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

 private:
  std::unique_ptr<Os> os_;
  Connection connection_;
};

// The next request tells the broker of a lease that was let go: one between two attaches keeps that out of the figure.
void attach(const std::string& endpoint, const std::string& model, const Amount& amount) {
  auto broker = must(Broker::connect({.endpoint = endpoint}));
  std::optional<Weights> weights;
  write(take(
      amount, [&] { weights = must(broker.attach(model)); },
      [&] {
        weights.reset();
        (void)must(broker.status());
      }));
}

void clients(const std::string& endpoint, int count, const Amount& amount) {
  write_rate(count, [&] {
    Client client(endpoint);
    return take(amount, [&] { client.ping(); }).size();
  });
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  const std::string what = words.empty() ? "" : words[0];
  if (what == "ping" && words.size() == 3) {
    Client client(words[1]);
    write(take(Amount::parse(words[2]), [&] { client.ping(); }));
  } else if (what == "attach" && words.size() == 4) {
    attach(words[1], words[2], Amount::parse(words[3]));
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
