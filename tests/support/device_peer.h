// DevicePeer: another process with a DeviceMemory of its own, as an owner or as a reader.
//
// It is forked before its parent uses the device: a forked child could not use it afterwards. It answers "ok", or what
// was wrong.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cuda_ipc/device_memory.h"
#include "shm/os.h"
#include "tests/support/child.h"

namespace modelbroker::testing {

using MakeDevice = std::function<std::unique_ptr<DeviceMemory>(Os& os, std::uint64_t total)>;

// Bytes by which a wrong seed or offset shows; they repeat after a prime number.
[[nodiscard]] inline std::vector<std::byte> sample_bytes(std::uint64_t size, std::uint64_t seed) {
  constexpr std::uint64_t kPeriod = 65'537;
  std::vector<std::byte> bytes(size);
  for (std::uint64_t i = 0; i < std::min(size, kPeriod); ++i) {
    bytes[i] = static_cast<std::byte>(((i + seed) * 0x9E3779B97F4A7C15U) >> 56U);
  }
  for (std::uint64_t at = kPeriod; at < size; at += kPeriod) {
    std::memcpy(bytes.data() + at, bytes.data(), std::min(kPeriod, size - at));
  }
  return bytes;
}

// Whether `range` begins with those bytes, and goes on with zeros.
[[nodiscard]] inline std::string compare(DeviceRange& range, std::uint64_t size, std::uint64_t seed) {
  std::vector<std::byte> found(range.size());
  if (auto copied = range.copy_out(0, found); !copied) return copied.error().message;
  std::vector<std::byte> wanted = sample_bytes(size, seed);
  wanted.resize(found.size());
  if (std::memcmp(found.data(), wanted.data(), found.size()) == 0) return "ok";
  return "differs at byte " + std::to_string(std::ranges::mismatch(found, wanted).in1 - found.begin());
}

// An allocation that begins with those bytes.
[[nodiscard]] inline Result<std::unique_ptr<Allocation>> make_sample(DeviceMemory& device, std::uint64_t size,
                                                                     std::uint64_t seed) {
  MODELBROKER_ASSIGN(auto made, device.create(size));
  const std::vector<std::byte> bytes = sample_bytes(size, seed);
  MODELBROKER_TRY(made->copy_in(0, bytes));
  MODELBROKER_TRY(device.synchronise());
  return made;
}

class DevicePeer {
 public:
  // `write` tries to store into a reader's memory, and returns if that was refused.
  DevicePeer(Os& os, std::uint64_t total, const MakeDevice& make, std::function<void(DeviceMapping&)> write) : os_(os) {
    std::array<int, 2> ends{};
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) != 0)
      throw std::runtime_error("socketpair");
    socket_ = Fd(ends[0]);
    Fd theirs(ends[1]);
    child_ = std::make_unique<Child>([&](const Child::Parent&) {
      socket_.reset();
      const auto device = make(os, total);
      serve(*device, theirs.get(), write);
      return 0;
    });
  }

  // As a reader, which keeps the memory until close() or its death.
  [[nodiscard]] std::string open(const SharedMemory& shared, std::uint64_t memory) {
    return text_of(ask({.what = 'o', .size = memory}, &shared));
  }
  [[nodiscard]] std::string compare(std::uint64_t size, std::uint64_t seed) {
    return text_of(ask({.what = 'c', .size = size, .seed = seed}));
  }
  [[nodiscard]] std::string close() { return text_of(ask({.what = 'x'})); }
  // "refused", or empty if the attempt killed it.
  [[nodiscard]] std::string write() { return text_of(ask({.what = 'w'})); }
  // As an owner: makes memory with sample bytes and shares it with us.
  [[nodiscard]] SharedMemory make_and_share(std::uint64_t size, std::uint64_t seed) {
    Answer answer = ask({.what = 'm', .size = size, .seed = seed});
    if (text_of(answer) != "ok") throw std::runtime_error(text_of(answer));
    return std::move(answer.shared);
  }
  void kill() { child_->kill(); }

 private:
  struct Message {
    char what = 0;
    std::uint64_t size = 0, seed = 0;
    IpcHandle handle{};
    std::array<char, 500> text{};
  };
  struct Answer {
    Message message;
    SharedMemory shared;
  };

  static std::string text_of(const Answer& answer) { return answer.message.text.data(); }
  static void put(Message& message, const std::string& text) {
    text.copy(message.text.data(), message.text.size() - 1);
  }

  static void send(Os& os, int socket, Message message, const SharedMemory* shared) {
    std::vector<int> descriptors;
    if (shared != nullptr) {
      if (const Fd* const fd = std::get_if<Fd>(shared)) descriptors.push_back(fd->get());
      if (const IpcHandle* const handle = std::get_if<IpcHandle>(shared)) message.handle = *handle;
    }
    (void)os.send(socket, std::as_bytes(std::span(&message, 1)), descriptors);
  }
  // An empty message: the other end is gone.
  static Answer receive(Os& os, int socket) {
    Answer answer;
    auto packet = os.receive(socket, sizeof(Message), 1);
    if (!packet || packet->bytes.size() != sizeof(Message)) return answer;
    std::memcpy(&answer.message, packet->bytes.data(), sizeof(Message));
    answer.shared = answer.message.handle;
    if (!packet->descriptors.empty()) answer.shared = std::move(packet->descriptors.front());
    return answer;
  }
  Answer ask(const Message& message, const SharedMemory* shared = nullptr) {
    send(os_, socket_.get(), message, shared);
    return receive(os_, socket_.get());
  }

  void serve(DeviceMemory& device, int socket, const std::function<void(DeviceMapping&)>& write) {
    std::unique_ptr<Allocation> made;
    std::unique_ptr<DeviceMapping> mapping;
    for (Answer asked = receive(os_, socket); asked.message.what != 0; asked = receive(os_, socket)) {
      Message reply{.what = 'r'};
      SharedMemory shared;
      switch (asked.message.what) {
        case 'o': {
          auto opened = device.open(asked.shared, asked.message.size);
          put(reply, opened ? "ok" : opened.error().message);
          if (opened) mapping = std::move(*opened);
          break;
        }
        case 'c':
          put(reply, testing::compare(*mapping, asked.message.size, asked.message.seed));
          break;
        case 'x':
          mapping.reset();
          put(reply, "ok");
          break;
        case 'w':
          write(*mapping);
          put(reply, "refused");
          break;
        default: {
          auto sample = make_sample(device, asked.message.size, asked.message.seed);
          auto to_share = sample ? (*sample)->share() : tl::unexpected(sample.error());
          put(reply, to_share ? "ok" : to_share.error().message);
          if (to_share) shared = std::move(*to_share);
          if (sample) made = std::move(*sample);
        }
      }
      asked.shared = SharedMemory();  // the mapping alone keeps it
      send(os_, socket, reply, std::holds_alternative<Fd>(shared) && !std::get<Fd>(shared) ? nullptr : &shared);
    }
  }

  Os& os_;
  Fd socket_;
  std::unique_ptr<Child> child_;
};

}  // namespace modelbroker::testing
