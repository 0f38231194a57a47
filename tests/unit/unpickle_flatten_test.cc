// From a pickle's value to names: nesting, wrappers, what is left out, and what is refused by the tensor's name.
#include "unpickle/flatten.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <vector>

#include "tests/support/pickle_text.h"
#include "unpickle/interpreter.h"

namespace modelbroker::unpickle {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::name;
using testing::storage;
using testing::tensor;
using testing::text;
using testing::two_floats;
using std::string_literals::operator""s;

Result<Flattened> flattened(std::string pickle) {
  pickle += ".";
  Heap heap;
  Interpreter interpreter(std::as_bytes(std::span<const char>(pickle)), heap);
  MODELBROKER_ASSIGN(const Id root, interpreter.run());
  auto flat = flatten(heap, root);
  if (flat) {
    for (NamedTensor& each : flat->tensors) each.storage = {};  // stands in the pickle
  }
  return flat;
}

std::vector<std::string> names_of(const Flattened& flat) {
  std::vector<std::string> names;
  for (const NamedTensor& each : flat.tensors) names.push_back(each.name);
  return names;
}

// {key: value}; several are written one behind the other after "}".
std::string item(const std::string& key, const std::string& value) { return text(key) + value + "s"; }

TEST(FlattenTest, NestedNamesAreJoinedByDots) {
  const auto flat =
      flattened("}" + item("a", two_floats()) + item("b", "}" + item("c.d", two_floats())) +
                item("l", "](" + two_floats() + "}" + item("x", two_floats()) + "e") + "K\x07" + two_floats() + "s");
  ASSERT_TRUE(flat) << flat.error().message;
  EXPECT_THAT(names_of(*flat), ElementsAre("a", "b.c.d", "l.0", "l.1.x", "7"));
  EXPECT_EQ(flat->left_out, 0U);
}

TEST(FlattenTest, ALoneTensorHasAName) {
  const auto flat = flattened(two_floats());
  ASSERT_TRUE(flat) << flat.error().message;
  EXPECT_THAT(names_of(*flat), ElementsAre("tensor"));
}

TEST(FlattenTest, OneOuterLevelWithAllTensorsIsTakenOff) {
  const std::string inner = "}" + item("w", two_floats()) + item("state_dict", "}" + item("v", two_floats()));
  const auto flat = flattened("}" + item("epoch", "K\x03") + item("state_dict", inner) +
                              item("optimizer_states", "]" + two_floats() + "a"));
  ASSERT_TRUE(flat) << flat.error().message;
  EXPECT_EQ(flat->wrapper, "state_dict");
  EXPECT_THAT(names_of(*flat), ElementsAre("w", "state_dict.v"));
  EXPECT_EQ(flat->left_out, 1U);
  EXPECT_EQ(flat->values, R"({"epoch":3})");
}

TEST(FlattenTest, TwoLevelsWithTensorsStay) {
  const auto flat = flattened("}" + item("params", "}" + item("w", two_floats())) +
                              item("params_ema", "}" + item("w", two_floats())));
  ASSERT_TRUE(flat) << flat.error().message;
  EXPECT_EQ(flat->wrapper, "");
  EXPECT_THAT(names_of(*flat), ElementsAre("params.w", "params_ema.w"));
}

TEST(FlattenTest, AnUnknownOuterLevelStays) {
  const auto flat = flattened("}" + item("unet", "}" + item("w", two_floats())));
  ASSERT_TRUE(flat) << flat.error().message;
  EXPECT_THAT(names_of(*flat), ElementsAre("unet.w"));
}

TEST(FlattenTest, WhatTrainersKeepIsLeftOutAndCounted) {
  for (const std::string key : {"optimizer", "optimizer_state_dict", "lr_schedulers", "callbacks", "loops", "scaler"}) {
    const auto flat = flattened("}" + item("w", two_floats()) + item(key, "}" + item("s", two_floats())));
    ASSERT_TRUE(flat) << flat.error().message;
    EXPECT_THAT(names_of(*flat), ElementsAre("w")) << key;
    EXPECT_EQ(flat->left_out, 1U) << key;
  }
  // A tensor of that name is a weight.
  const auto flat = flattened("}" + item("scaler", two_floats()));
  ASSERT_TRUE(flat) << flat.error().message;
  EXPECT_THAT(names_of(*flat), ElementsAre("scaler"));
}

TEST(FlattenTest, TensorsOfUnknownObjectsAreLeftOutAndCounted) {
  const auto flat =
      flattened("}" + item("w", two_floats()) + item("o", name("pkg", "C") + ")\x81}" + item("t", two_floats()) + "b"));
  ASSERT_TRUE(flat) << flat.error().message;
  EXPECT_THAT(names_of(*flat), ElementsAre("w"));
  EXPECT_EQ(flat->left_out, 1U);
}

TEST(FlattenTest, PlainValuesAreJson) {
  const std::string path = name("pathlib", "PosixPath") + text("/") + text("a") + "\x86R";
  const auto flat = flattened(
      "}" + item("w", two_floats()) + item("i", "J\xff\xff\xff\xff") + item("f", "Fnan\n") + item("n", "N") +
      item("b", "\x88") + item("s", text("\"\n\xc3\xa9")) + item("l", "](K\x01" + two_floats() + "e") +
      item("only", "]" + two_floats() + "a") + item("p", path) +
      item("a", name("argparse", "Namespace") + ")\x81}" + item("lr", "F0.5\n") + "b") + "K\x05K\x06s" + "NNs");
  ASSERT_TRUE(flat) << flat.error().message;
  EXPECT_EQ(flat->values, R"({"i":-1,"f":"NaN","n":null,"b":true,"s":"\u0022\u000a)"
                          "\xc3\xa9"
                          R"(","l":[1,null],"p":"/a","a":{"lr":0.5},"5":6})");
  EXPECT_FALSE(flat->values_left_out);
}

TEST(FlattenTest, TooManyPlainValuesAreLeftOut) {
  const auto flat = flattened("}" + item("w", two_floats()) + item("s", text(std::string(1U << 20U, 'x'))));
  ASSERT_TRUE(flat) << flat.error().message;
  EXPECT_TRUE(flat->values_left_out);
  EXPECT_EQ(flat->values, "");
}

TEST(FlattenTest, ViewsAndStridesStayWhatTheyAre) {
  const std::string six = storage("FloatStorage", "0", "K\x06");
  const auto flat = flattened("}" + item("t", tensor(six, "K\x01", "K\x02K\x02\x86", "K\x01K\x03\x86")) +
                              item("expanded", tensor(six, "K\x05", "K\x04\x85", "K\0\x85"s)) +
                              item("one", tensor(six, "K\0"s, "K\x01K\x06\x86", "K\x09K\x01\x86")) +
                              item("scalar", tensor(six, "K\x05", ")", ")")) +
                              item("none", tensor(six, "K\x06", "K\0K\x05\x86"s, "K\x05K\x01\x86")));
  ASSERT_TRUE(flat) << flat.error().message;
  ASSERT_EQ(flat->tensors.size(), 5U);
  const Placement& transposed = flat->tensors[0].placement;
  EXPECT_EQ(transposed.offset, 4U);
  EXPECT_EQ(transposed.size, 20U);
  EXPECT_THAT(transposed.strides, ElementsAre(1, 3));
  const Placement& expanded = flat->tensors[1].placement;
  EXPECT_EQ(expanded.size, 4U);
  EXPECT_THAT(expanded.strides, ElementsAre(0));
  EXPECT_THAT(flat->tensors[2].placement.strides, ElementsAre());
  EXPECT_EQ(flat->tensors[3].placement.size, 4U);
  EXPECT_EQ(flat->tensors[4].placement.size, 0U);
}

struct FlattenCase {
  const char* what;
  std::string pickle;
  ErrorCode code;
  std::string message;
};

class FlattenRefusalTest : public ::testing::TestWithParam<FlattenCase> {};

TEST_P(FlattenRefusalTest, NamesTheTensor) {
  const auto flat = flattened(GetParam().pickle);
  ASSERT_FALSE(flat);
  EXPECT_EQ(flat.error().code, GetParam().code) << flat.error().message;
  EXPECT_THAT(flat.error().message, HasSubstr(GetParam().message));
}

std::string of_two(const std::string& offset, const std::string& shape, const std::string& strides,
                   const std::string& further = "\x89N") {
  return "}" + item("w", tensor(storage("FloatStorage", "0", "K\x02"), offset, shape, strides, further));
}

std::string laughs() {
  std::string pickle = "]q\0"s;
  for (char i = 0; i < 30; ++i) pickle += "](h"s + i + "h"s + i + "eq"s + static_cast<char>(i + 1);
  return pickle;
}

constexpr auto kDamaged = ErrorCode::kDataLoss;
constexpr auto kCannot = ErrorCode::kUnimplemented;
const std::string kLargest = "\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f";

INSTANTIATE_TEST_SUITE_P(
    All, FlattenRefusalTest,
    ::testing::ValuesIn(std::vector<FlattenCase>{
        {"TooLong", of_two("K\0"s, "K\x03\x85", "K\x01\x85"), kDamaged, "tensor 'w': it reaches past"},
        {"OffsetTooLarge", of_two("K\x01", "K\x02\x85", "K\x01\x85"), kDamaged, "past the end of its storage '0'"},
        {"StrideTooLarge", of_two("K\0"s, "K\x02\x85", "K\x02\x85"), kDamaged, "past the end"},
        {"ShapeOverflows", of_two("K\0"s, kLargest + kLargest + "\x86", "K\x02K\x02\x86"), kDamaged, "past the end"},
        {"StrideOverflows", of_two("K\0"s, "K\x03\x85", kLargest + "\x85"), kDamaged, "past the end"},
        {"OffsetOverflows", of_two(kLargest, "K\x01\x85", "K\x01\x85"), kDamaged, "past the end"},
        {"EmptyPastTheEnd", of_two("K\x03", "K\0\x85"s, "K\x01\x85"), kDamaged, "past the end"},
        {"NegativeStride", of_two("K\0"s, "K\x02\x85", "I-1\n\x85"), kCannot, "tensor 'w': it has a negative stride"},
        {"Conj", of_two("K\0"s, "K\x02\x85", "K\x01\x85", "\x89N}" + item("conj", "\x88")), kCannot, "conj bit"},
        {"Neg", of_two("K\0"s, "K\x02\x85", "K\x01\x85", "\x89N}" + item("neg", "\x88")), kCannot, "neg bit"},
        {"Quantised", "}" + item("w", tensor(storage("QInt8Storage", "0", "K\x02"), "K\0"s, ")", ")")), kCannot,
         "tensor 'w': its dtype 'qint8'"},
        {"Sparse", "}" + item("w", name("torch._utils", "_rebuild_sparse_tensor") + ")R"), kCannot,
         "tensor 'w': it is sparse"},
        {"Meta", "}" + item("w", name("torch._utils", "_rebuild_meta_tensor_no_storage") + ")R"), kCannot,
         "tensor 'w': it is on the meta device"},
        {"Collision", "}" + item("a.b", two_floats()) + item("a", "}" + item("b", two_floats())), kDamaged,
         "tensor 'a.b': two tensors"},
        {"KeyTwice", "}" + item("a", two_floats()) + item("a", two_floats()), kDamaged, "tensor 'a': two tensors"},
        {"NotUtf8", "}" + item("\xff", two_floats()), kDamaged, "not UTF-8"},
        {"LongName", "}" + item(std::string(5000, 'a'), two_floats()), kCannot, "too long"},
        {"Circle", "}q\x01" + text("a") + "h\x01s", kCannot, "deeper in each other"},
        {"BillionLaughs", laughs(), kCannot, "stand in more places"},
    }),
    [](const auto& each) { return std::string(each.param.what); });

}  // namespace
}  // namespace modelbroker::unpickle
