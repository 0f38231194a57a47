// The floor of a request: a bare ZeroMQ echo between two processes, DEALER to ROUTER over ipc.
//
// Usage: zmq_echo_bench serve ENDPOINT                       answers until it is killed; prints "ready" first
//        zmq_echo_bench ask ENDPOINT BYTES AMOUNT            samples of round trips (bench/samples.h)
//        zmq_echo_bench attach ENDPOINT BYTES FILE AMOUNT    the same, and FILE opened and mapped after each
//        zmq_echo_bench clients ENDPOINT BYTES COUNT AMOUNT  so many clients at once; prints requests and seconds
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <string>
#include <vector>
#include <zmq.hpp>

#include "bench/samples.h"

namespace {

using namespace modelbroker::bench;

[[noreturn]] void serve(const std::string& endpoint) {
  zmq::context_t context{1};
  zmq::socket_t socket(context, zmq::socket_type::router);
  socket.bind(endpoint);
  std::puts("ready");
  std::fflush(stdout);
  while (true) {
    bool more = true;
    while (more) {
      zmq::message_t part;
      (void)socket.recv(part);
      more = part.more();
      socket.send(part, more ? zmq::send_flags::sndmore : zmq::send_flags::none);
    }
  }
}

class Asker {
 public:
  Asker(const std::string& endpoint, std::size_t bytes) : request_(bytes, 'x') {
    socket_.set(zmq::sockopt::linger, 0);
    socket_.connect(endpoint);
  }
  void ask() {
    (void)socket_.send(zmq::buffer(request_), zmq::send_flags::none);
    zmq::message_t reply;
    (void)socket_.recv(reply);
    if (reply.size() != request_.size()) die("another message came back");
  }

 private:
  std::string request_;
  zmq::context_t context_{1};
  zmq::socket_t socket_{context_, zmq::socket_type::dealer};
};

struct Mapped {
  int file = -1;
  void* at = nullptr;
  std::size_t size = 0;
};

Mapped map(const char* path) {
  Mapped mapped{.file = open(path, O_RDONLY | O_CLOEXEC)};
  struct stat found {};
  if (mapped.file < 0 || fstat(mapped.file, &found) != 0) die(path);
  mapped.size = static_cast<std::size_t>(found.st_size);
  mapped.at = mmap(nullptr, mapped.size, PROT_READ, MAP_SHARED, mapped.file, 0);
  if (mapped.at == MAP_FAILED) die("mmap");
  return mapped;
}

void attach(const std::string& endpoint, std::size_t bytes, const char* path, const Amount& amount) {
  Asker asker(endpoint, bytes);
  Mapped mapped;
  write(take(
      amount,
      [&] {
        asker.ask();
        mapped = map(path);
      },
      [&] {
        munmap(mapped.at, mapped.size);
        close(mapped.file);
      }));
}

void clients(const std::string& endpoint, std::size_t bytes, int count, const Amount& amount) {
  write_rate(count, [&] {
    Asker asker(endpoint, bytes);
    return take(amount, [&] { asker.ask(); }).size();
  });
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  const std::string what = words.empty() ? "" : words[0];
  if (what == "serve" && words.size() == 2) serve(words[1]);
  if (what == "ask" && words.size() == 4) {
    Asker asker(words[1], std::stoul(words[2]));
    write(take(Amount::parse(words[3]), [&] { asker.ask(); }));
  } else if (what == "attach" && words.size() == 5) {
    attach(words[1], std::stoul(words[2]), words[3].c_str(), Amount::parse(words[4]));
  } else if (what == "clients" && words.size() == 5) {
    clients(words[1], std::stoul(words[2]), std::stoi(words[3]), Amount::parse(words[4]));
  } else {
    std::fprintf(stderr,
                 "usage: zmq_echo_bench serve ENDPOINT | ask ENDPOINT BYTES AMOUNT | "
                 "attach ENDPOINT BYTES FILE AMOUNT | clients ENDPOINT BYTES COUNT AMOUNT\n");
    return 2;
  }
  return 0;
}
