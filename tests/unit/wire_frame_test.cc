// Frames as bytes: what goes through unchanged, and what is refused before or while it is decoded.
// The bytes are made by hand here, so that the codec is not its own judge.
#include "wire/frame.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

namespace modelbroker::wire {
namespace {

// ---- msgpack by hand

std::string big_endian(unsigned char code, std::uint64_t value, unsigned width) {
  std::string bytes(1, static_cast<char>(code));
  for (unsigned i = width; i > 0; --i) bytes += static_cast<char>((value >> (8 * (i - 1))) & 0xFFU);
  return bytes;
}
std::string uint(std::uint64_t value) { return big_endian(0xcf, value, 8); }
std::string sint(std::int64_t value) { return big_endian(0xd3, static_cast<std::uint64_t>(value), 8); }
std::string str(std::string_view text) { return big_endian(0xdb, text.size(), 4) + std::string(text); }
std::string real(double value) {
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof bits);
  return big_endian(0xcb, bits, 8);
}
std::string array(const std::vector<std::string>& items) {
  std::string bytes = big_endian(0xdd, items.size(), 4);
  for (const std::string& item : items) bytes += item;
  return bytes;
}
std::string map(const std::vector<std::pair<std::string, std::string>>& entries) {
  std::string bytes = big_endian(0xdf, entries.size(), 4);
  for (const auto& [key, value] : entries) bytes += str(key) + value;
  return bytes;
}
const std::string kNil = "\xc0";
const std::string kTrue = "\xc3";

// A request of version 2 with this data.
std::string request(const std::string& data) {
  return map({{"v", uint(2)}, {"request_id", str("r")}, {"type", str("t")}, {"data", data}});
}
// The same with something put in front of the data; `request({})` is whole with it.
std::string request_with(const std::string& key, const std::string& value) {
  return map({{"v", uint(2)}, {"request_id", str("r")}, {"type", str("t")}, {key, value}});
}

void expect_refused(const std::string& bytes, std::string_view word) {
  const auto decoded = Request::decode(bytes);
  ASSERT_FALSE(decoded) << word;
  EXPECT_EQ(decoded.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(decoded.error().message.find(word), std::string::npos) << decoded.error().message;
}
template <class M>
void expect_data_refused(const std::string& data, std::string_view word) {
  const auto decoded = Request::decode(request(data));
  ASSERT_TRUE(decoded) << decoded.error().message;
  const auto message = decoded->data<M>();
  ASSERT_FALSE(message) << word;
  EXPECT_EQ(message.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(message.error().message.find(word), std::string::npos) << message.error().message;
}

// ---- round trips

TEST(FrameTest, ARequestComesBackAsItWasSent) {
  LoadModel sent;
  sent.path =
      "/models/gr\xc3\xbc\xc3\x9f"
      "e.safetensors";
  sent.name = "a";
  sent.estimated_size_mb = 12.5;
  sent.pin = true;
  const std::string bytes = encode_request({"id-1", "model.load_model", "token", 250}, sent);
  const auto got = Request::decode(bytes);
  ASSERT_TRUE(got) << got.error().message;
  EXPECT_EQ(got->type(), "model.load_model");
  EXPECT_EQ(got->session(), "token");
  EXPECT_EQ(got->deadline_ms(), 250U);
  EXPECT_EQ(got->reply_to().version, 2U);
  EXPECT_EQ(got->reply_to().id, RequestId(std::string("id-1")));
  const auto data = got->data<LoadModel>();
  ASSERT_TRUE(data) << data.error().message;
  EXPECT_EQ(data->path, sent.path);
  EXPECT_EQ(data->name, "a");
  EXPECT_EQ(data->type, "");
  EXPECT_EQ(data->estimated_size_mb, 12.5);
  EXPECT_TRUE(data->pin);
}

TEST(FrameTest, NestedRepliesComeBackAsTheyWereSent) {
  ModelListReply sent;
  sent.models.resize(2);
  sent.models[0].name = "one";
  sent.models[0].aliases = {"eins", "un"};
  sent.models[0].bytes = ~std::uint64_t{0};
  sent.models[1].leases = {{10, 20, 30, 40}, {11, 21, 31, 41}};
  const auto reply = Reply::decode(encode_reply({2, std::string("id")}, sent));
  ASSERT_TRUE(reply) << reply.error().message;
  EXPECT_EQ(reply->request_id(), "id");
  const auto got = reply->data<ModelListReply>();
  ASSERT_TRUE(got) << got.error().message;
  ASSERT_EQ(got->models.size(), 2U);
  EXPECT_EQ(got->models[0].aliases, sent.models[0].aliases);
  EXPECT_EQ(got->models[0].bytes, ~std::uint64_t{0});
  ASSERT_EQ(got->models[1].leases.size(), 2U);
  EXPECT_EQ(got->models[1].leases[1].since_ms, 41U);

  StatusReply status;
  status.features = {{"collapse", true}, {"pidfd", false}};
  status.tiers["ram"].evictions = 7;
  const auto again = Reply::decode(encode_reply({}, status))->data<StatusReply>();
  ASSERT_TRUE(again) << again.error().message;
  EXPECT_EQ(again->features, status.features);
  EXPECT_EQ(again->tiers.at("ram").evictions, 7U);
}

TEST(FrameTest, AnErrorComesBackWithItsCodeAndDetails) {
  const Error sent{ErrorCode::kResourceExhausted, "no room", {{"needed", 5}, {"limit", 3}}};
  const auto reply = Reply::decode(encode_error({2, std::string("id")}, sent));
  ASSERT_TRUE(reply) << reply.error().message;
  EXPECT_EQ(reply->request_id(), "id");
  const auto got = reply->data<DetachReply>();
  ASSERT_FALSE(got);
  EXPECT_EQ(got.error().code, sent.code);
  EXPECT_EQ(got.error().message, sent.message);
  EXPECT_EQ(got.error().details, sent.details);
}

TEST(FrameTest, ARequestOutlivesTheBytesItCameFrom) {
  auto bytes = std::make_unique<std::string>(request(map({{"model", str(std::string(5000, 'm'))}})));
  const auto got = Request::decode(*bytes);
  std::fill(bytes->begin(), bytes->end(), '\xff');
  bytes.reset();
  ASSERT_TRUE(got);
  EXPECT_EQ(got->data<ModelName>()->model, std::string(5000, 'm'));
}

// ---- version 1

TEST(FrameTest, AVersionOneRequestNeedsOnlyItsType) {
  const auto bare = Request::decode(map({{"type", str("model.list")}}));
  ASSERT_TRUE(bare) << bare.error().message;
  EXPECT_EQ(bare->reply_to().version, 1U);
  EXPECT_EQ(bare->reply_to().id, RequestId());
  EXPECT_TRUE(bare->data<Empty>());
  EXPECT_TRUE(bare->data<GetModelInfo>());
  const std::string data = map({{"name", str("n")}});
  for (const auto& [id, expected] :
       std::vector<std::pair<std::string, RequestId>>{{str("x"), std::string("x")},
                                                      {str(""), std::string()},
                                                      {str(std::string(1000, 'x')), std::string(1000, 'x')},
                                                      {uint(77), std::uint64_t{77}},
                                                      {sint(-77), std::int64_t{-77}},
                                                      {kNil, std::monostate()}}) {
    const auto got = Request::decode(map({{"type", str("t")}, {"data", data}, {"request_id", id}}));
    ASSERT_TRUE(got) << got.error().message;
    EXPECT_EQ(got->reply_to().version, 1U);
    EXPECT_EQ(got->reply_to().id, expected);
    EXPECT_EQ(got->data<GetModelInfo>()->name, "n");
  }
}

TEST(FrameTest, AVersionOneReplyIsExactlyThreeFields) {
  // fixmap of 3: request_id, success, data or error.
  EXPECT_EQ(encode_reply({1, std::uint64_t{7}}, DetachReply{true}),
            std::string("\x83\xaarequest_id\x07\xa7success\xc3\xa4") + "data\x81\xa8released\xc3");
  EXPECT_EQ(encode_error({1, std::string("x")}, {ErrorCode::kNotFound, "no model 'm'"}),
            std::string("\x83\xaarequest_id\xa1x\xa7success\xc2\xa5") + "error\xb7not_found: no model 'm'");
  EXPECT_EQ(encode_error({1, std::monostate()}, {ErrorCode::kInternal, ""}),
            std::string("\x83\xaarequest_id\xc0\xa7success\xc2\xa5") + "error\xaainternal: ");
  EXPECT_EQ(encode_error({1, std::int64_t{-1}}, {ErrorCode::kInternal, ""}),
            std::string("\x83\xaarequest_id\xff\xa7success\xc2\xa5") + "error\xaainternal: ");
}

TEST(FrameTest, AVersionTwoReplyNamesItsVersion) {
  EXPECT_EQ(encode_reply({2, std::string("x")}, SessionByeReply{3}),
            std::string("\x84\xa1v\x02\xaarequest_id\xa1x\xa7success\xc3\xa4") + "data\x81\xa8released\x03");
  EXPECT_EQ(encode_error({}, {ErrorCode::kInternal, "m"}),
            std::string("\x84\xa1v\x02\xaarequest_id\xa0\xa7success\xc2\xa5") +
                "error\x83\xa4"
                "code\xa8internal\xa7message\xa1m\xa7"
                "details\x80");
}

// ---- the head

TEST(FrameTest, TheHeadIsChecked) {
  expect_refused(map({{"v", uint(3)}, {"request_id", str("r")}, {"type", str("t")}}), "'v'");
  expect_refused(map({{"v", uint(1)}, {"request_id", str("r")}, {"type", str("t")}}), "'v'");
  expect_refused(map({{"v", str("2")}, {"request_id", str("r")}, {"type", str("t")}}), "'v'");
  expect_refused(map({{"v", uint(2)}, {"type", str("t")}}), "'request_id'");
  expect_refused(map({{"v", uint(2)}, {"request_id", str("")}, {"type", str("t")}}), "'request_id'");
  expect_refused(map({{"v", uint(2)}, {"request_id", uint(5)}, {"type", str("t")}}), "'request_id'");
  expect_refused(map({{"v", uint(2)}, {"request_id", str(std::string(65, 'r'))}, {"type", str("t")}}), "'request_id'");
  EXPECT_TRUE(Request::decode(map({{"v", uint(2)}, {"request_id", str(std::string(64, 'r'))}, {"type", str("t")}})));
  expect_refused(map({{"v", uint(2)}, {"request_id", str("r")}}), "'type'");
  expect_refused(map({{"type", str("")}}), "'type'");
  expect_refused(map({{"type", uint(1)}}), "'type'");
  expect_refused(request_with("session", uint(1)), "'session'");
  expect_refused(request_with("deadline_ms", sint(-1)), "'deadline_ms'");
  expect_refused(request_with("deadline_ms", real(1)), "'deadline_ms'");
  EXPECT_EQ(Request::decode(request_with("session", kNil))->session(), "");
  EXPECT_EQ(Request::decode(request_with("deadline_ms", kNil))->deadline_ms(), 0U);
  EXPECT_TRUE(Request::decode(request_with("later_versions", array({kTrue, map({})}))));
}

TEST(FrameTest, TheSenderIsKnownEvenWhenTheRequestIsRefused) {
  ReplyTo to;
  EXPECT_FALSE(Request::decode(map({{"v", uint(2)}, {"request_id", str("r")}}), kMessageLimit, &to));
  EXPECT_EQ(to.version, 2U);
  EXPECT_EQ(to.id, RequestId(std::string("r")));
  EXPECT_FALSE(Request::decode(map({{"request_id", uint(9)}}), kMessageLimit, &to));
  EXPECT_EQ(to.version, 1U);
  EXPECT_EQ(to.id, RequestId(std::uint64_t{9}));
  to = {};
  EXPECT_FALSE(Request::decode("garbage", kMessageLimit, &to));
  EXPECT_EQ(to.id, RequestId(std::string()));
}

TEST(FrameTest, WhatIsNoMapIsRefused) {
  for (const std::string& bytes : {str("text"), uint(1), kNil, kTrue, real(1), array({}), array({map({})})}) {
    expect_refused(bytes, "not a msgpack map");
  }
  expect_refused("", "limits");
  expect_refused("\xc1", "limits");  // the one byte that msgpack never uses
}

// ---- what is looked at before anything is decoded

TEST(FrameTest, TheSizeIsLimited) {
  const std::string whole = request(map({{"model", str("")}}));
  const auto padded = [&](std::size_t size) {
    return request(map({{"model", str(std::string(size - whole.size(), 'x'))}}));
  };
  EXPECT_TRUE(Request::decode(padded(kMessageLimit)));
  expect_refused(padded(kMessageLimit + 1), "1048576 bytes");
  EXPECT_TRUE(Request::decode(padded(kPacketLimit), kPacketLimit));
  const auto packet = Request::decode(padded(kPacketLimit + 1), kPacketLimit);
  ASSERT_FALSE(packet);
  EXPECT_NE(packet.error().message.find("65536 bytes"), std::string::npos);
}

TEST(FrameTest, TheDepthIsLimited) {
  // The message's map is the first level, `data` the second.
  const auto nested = [](int levels) {
    std::string data = kNil;
    for (int i = 2; i <= levels; ++i) data = i % 2 == 0 ? array({data}) : map({{"k", data}});
    return request_with("x", data);
  };
  EXPECT_TRUE(Request::decode(nested(8)));
  expect_refused(nested(9), "limits");
  expect_refused(request_with("x", std::string(900'000, '\x91')), "elements");
  expect_refused(std::string(1000, '\x81'), "limits");
}

TEST(FrameTest, TheElementsAreLimitedInAllNotInEachContainer) {
  // The head's four entries count too.
  const auto of_arrays = [](std::size_t arrays, std::size_t size) {
    return request_with("x", array(std::vector<std::string>(arrays, array(std::vector<std::string>(size, kNil)))));
  };
  EXPECT_TRUE(Request::decode(of_arrays(1, 65536 - 4 - 1)));
  expect_refused(of_arrays(1, 65536 - 4), "65536 elements");
  expect_refused(of_arrays(1, 65537), "65536 elements");
  EXPECT_TRUE(Request::decode(of_arrays(6, 10'000)));
  expect_refused(of_arrays(7, 10'000), "65536 elements");
  std::vector<std::pair<std::string, std::string>> entries;
  for (int i = 0; i < 65'537; ++i) entries.emplace_back(std::to_string(i), kNil);
  expect_refused(request(map(entries)), "65536 elements");
}

TEST(FrameTest, CountsAreNotBelieved) {
  const std::string head = map({{"type", str("t")}});
  for (const char* const bomb : {"\xdd\xff\xff\xff\xff", "\xdf\xff\xff\xff\xff"}) {
    expect_refused(std::string(bomb, 5), "elements");
    expect_refused("\x81\xa1x" + std::string(bomb, 5), "elements");
  }
  expect_refused(std::string("\x81\xa1x\xdb\xff\xff\xff\xff", 8), "limits");
  // Promised, and not there; no array in it may claim more than the message has bytes.
  expect_refused("\x81\xa1x" + big_endian(0xdd, 60'000, 4), "claims more elements");
  std::string nested = "\x81\xa1x";
  for (int level = 2; level <= 8; ++level) nested += big_endian(0xdd, 3 + 7 * 5, 4);
  expect_refused(nested, "not msgpack");  // each claims just so many: built, and too short
}

TEST(FrameTest, EveryTruncationIsRefused) {
  const std::string whole = request(map({{"model", str("m")}, {"n", array({uint(1), kTrue, real(2)})}}));
  ASSERT_TRUE(Request::decode(whole));
  for (std::size_t size = 0; size < whole.size(); ++size) expect_refused(whole.substr(0, size), "limits");
  expect_refused(whole + kNil, "after the message's end");
  expect_refused(whole + whole, "after the message's end");
}

// ---- the whole tree

TEST(FrameTest, KeysAreUniqueStrings) {
  expect_refused(map({{"type", str("t")}, {"type", str("u")}}), "'type' is there twice");
  expect_refused(request(map({{"k", kNil}, {"other", kNil}, {"k", kNil}})), "'k' is there twice");
  expect_refused(request(map({{"x", array({map({{"\x1b[2J", kNil}, {"\x1b[2J", kNil}})})}})), "\\x1b[2J");
  const auto many = [](int keys) {
    std::vector<std::pair<std::string, std::string>> entries;
    for (int i = 0; i < keys; ++i) entries.emplace_back(std::to_string(i * 7 % keys), kNil);
    return entries;
  };
  for (const int keys : {16, 17, 100}) {
    EXPECT_TRUE(Request::decode(request(map(many(keys)))));
    for (const int twice : {0, keys / 2, keys - 2}) {
      auto entries = many(keys);
      entries.back().first = entries[static_cast<std::size_t>(twice)].first;
      expect_refused(request(map(entries)), "'" + entries.back().first + "' is there twice");
    }
  }
  expect_refused(request("\x81" + uint(1) + kNil), "not a string");
  expect_refused(request("\x81" + kNil + kNil), "not a string");
}

TEST(FrameTest, BinaryIsRefusedWhereverItStands) {
  for (const std::string& value : {std::string("\xc4\x00", 2), std::string("\xc4\x01z", 3), std::string("\xd4\x01z", 3),
                                   std::string("\xc7\x00\x01", 3), std::string("\xc7\x01\x01z", 4)}) {
    EXPECT_EQ(Request::decode(request_with("x", value)).error().code, ErrorCode::kInvalidArgument);
    EXPECT_EQ(Request::decode(request(map({{"a", array({value})}}))).error().code, ErrorCode::kInvalidArgument);
  }
}

TEST(FrameTest, StringsAreUtf8EvenInUnknownFields) {
  for (const char* const bad : {"\xff", "\xc3", "\xc0\x80", "\xed\xa0\x80"}) {
    expect_refused(request_with("x", str(bad)), "UTF-8");
    expect_refused(request_with(bad, kNil), "UTF-8");
    expect_refused(request(map({{"a", array({map({{"b", str(bad)}})})}})), "UTF-8");
  }
}

// ---- fields

TEST(FrameTest, FieldsOfAnotherKindAreNamed) {
  expect_data_refused<LoadModel>(map({{"path", uint(1)}}), "'path' must be a string");
  expect_data_refused<LoadModel>(map({{"pin", uint(1)}}), "'pin' must be a bool");
  expect_data_refused<LoadModel>(map({{"estimated_size_mb", str("1")}}), "'estimated_size_mb' must be a number");
  expect_data_refused<Detach>(map({{"lease", sint(-1)}}), "'lease' must be an unsigned integer");
  expect_data_refused<Detach>(map({{"lease", real(1)}}), "'lease' must be an unsigned integer");
  expect_data_refused<Detach>(map({{"lease", kTrue}}), "'lease' must be an unsigned integer");
  expect_data_refused<Restate>(map({{"leases", map({})}}), "'leases' must be an array");
  expect_data_refused<Restate>(map({{"leases", array({uint(1)})}}), "'leases'");
  expect_data_refused<Restate>(map({{"leases", array({map({{"lease", uint(1)}})})}}), "'leases'");
  for (const std::string& data : {array({}), str("x"), uint(1), kTrue}) expect_data_refused<Empty>(data, "'data'");
}

TEST(FrameTest, MissingRequiredFieldsAreNamed) {
  expect_data_refused<ModelName>(map({}), "'model' is missing");
  expect_data_refused<ModelName>(map({{"model", kNil}}), "'model' is missing");
  expect_data_refused<Detach>(kNil, "'lease' is missing");
  expect_data_refused<BlockOpen>(map({{"blocks", str("x")}}), "'block' is missing");
}

TEST(FrameTest, OptionalFieldsKeepTheirDefaultsAndUnknownOnesAreIgnored) {
  const auto got =
      Request::decode(request(map({{"model", str("m")}, {"load", kNil}, {"new", map({{"x", array({})}})}})));
  ASSERT_TRUE(got);
  const auto attach = got->data<Attach>();
  ASSERT_TRUE(attach) << attach.error().message;
  EXPECT_TRUE(attach->load);
  EXPECT_EQ(attach->device, "cpu");
  EXPECT_EQ(attach->component, "");
  // As a broker answers that does not know the field 'outcome'.
  const auto old =
      Reply::decode(map({{"v", uint(2)},
                         {"request_id", str("a")},
                         {"success", kTrue},
                         {"data", map({{"lease", uint(7)}, {"model", str("m")}, {"blocks", array({})}})}}));
  ASSERT_TRUE(old) << old.error().message;
  const auto attached = old->data<AttachReply>();
  ASSERT_TRUE(attached) << attached.error().message;
  EXPECT_EQ(attached->lease, 7);
  EXPECT_EQ(attached->outcome, "");
}

TEST(FrameTest, ANumberMayBeAnyNumber) {
  for (const auto& [bytes, value] : std::vector<std::pair<std::string, double>>{
           {uint(3), 3}, {sint(-3), -3}, {real(0.25), 0.25}, {std::string("\xca\x3f\x80\x00\x00", 5), 1}}) {
    EXPECT_EQ(Request::decode(request(map({{"estimated_size_mb", bytes}})))->data<LoadModel>()->estimated_size_mb,
              value);
  }
}

TEST(FrameTest, ARepliesDamageIsAnErrorOfItsReader) {
  EXPECT_EQ(Reply::decode("\xff").error().code, ErrorCode::kInvalidArgument);
  EXPECT_FALSE(Reply::decode(map({{"v", uint(2)}})));
  EXPECT_FALSE(Reply::decode(map({{"success", uint(1)}})));
  const auto no_error = Reply::decode(map({{"success", "\xc2"}}));
  ASSERT_TRUE(no_error);
  EXPECT_EQ(no_error->data<DetachReply>().error().code, ErrorCode::kInternal);
  const auto strange =
      Reply::decode(map({{"success", "\xc2"}, {"error", map({{"code", str("new_word")}, {"message", uint(1)}})}}));
  EXPECT_EQ(strange->data<DetachReply>().error().code, ErrorCode::kInternal);
}

}  // namespace
}  // namespace modelbroker::wire
