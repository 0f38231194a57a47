// Thousands of damaged frames: each gives a value or a typed error, and nothing else happens.
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "shm/text.h"
#include "wire/frame.h"

namespace modelbroker::wire {
namespace {

// Reads a frame as everything that it could be: the result does not matter, that there is one does.
void read_as_anything(const std::string& bytes) {
  if (const auto request = Request::decode(bytes)) {
#define MODELBROKER_READ(M) (void)request->data<M>();
    MODELBROKER_REQUEST_STRUCTS(MODELBROKER_READ)
#undef MODELBROKER_READ
    (void)encode_reply(request->reply_to(), DetachReply{});
  } else {
    EXPECT_EQ(request.error().code, ErrorCode::kInvalidArgument);
    EXPECT_TRUE(valid_utf8(request.error().message)) << request.error().message;
  }
  if (const auto reply = Reply::decode(bytes)) {
#define MODELBROKER_READ(M) (void)reply->data<M>();
    MODELBROKER_REPLY_STRUCTS(MODELBROKER_READ)
#undef MODELBROKER_READ
  }
}

TEST(FrameMutationTest, MutatedFramesGiveAValueOrATypedError) {
  Attach attach;
  attach.model = "m";
  ModelListReply list;
  list.models.resize(2);
  list.models[0].leases.resize(2);
  StatusReply status;
  status.features["collapse"] = true;
  status.tiers["ram"] = {};
  const std::vector<std::string> seeds{
      encode_request({"id", "model.attach", "session", 5}, attach),
      encode_request({"id", "lease.restate"}, Restate{{{1, "m", {"a", "b"}}, {2, "n", {}}}}), encode_reply({}, list),
      encode_reply({1, std::uint64_t{5}}, status), encode_error({}, {ErrorCode::kDataLoss, "text", {{"needed", 1}}})};
  for (const std::string& seed : seeds) read_as_anything(seed);
  std::mt19937_64 random(20240607);  // the same bytes in every run
  const auto below = [&](std::size_t limit) { return static_cast<std::size_t>(random() % limit); };
  for (int round = 0; round < 20000; ++round) {
    std::string bytes = seeds[below(seeds.size())];
    for (std::size_t changes = below(6) + 1; changes > 0; --changes) {
      const std::size_t at = below(bytes.size());
      switch (below(5)) {
        case 0:
          bytes[at] = static_cast<char>(random());
          break;
        case 1:
          bytes.erase(at, below(4));
          break;
        case 2:
          bytes.insert(at, std::string(below(4), static_cast<char>(random())));
          break;
        case 3:
          bytes.insert(at, bytes.substr(below(bytes.size()), below(40)));
          break;
        default:
          bytes.resize(at + 1);
          break;
      }
      if (bytes.empty()) bytes = "\xc0";
    }
    read_as_anything(bytes);
  }
}

}  // namespace
}  // namespace modelbroker::wire
