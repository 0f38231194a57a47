// The index of a sharded model: what is read of it, and what is refused.
#include "broker/formats/set_index.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "shm/text.h"
#include "tests/support/faulty_os.h"
#include "tests/support/safetensors_file.h"
#include "tests/support/temp_directory.h"
#include "tests/support/watchdog.h"

namespace modelbroker {
namespace {

using ::testing::HasSubstr;
using Tensors = std::map<std::string, std::size_t>;

class SetIndexTest : public ::testing::Test {
 protected:
  [[nodiscard]] Result<SetIndex> read(const std::string& text) {
    testing::write_file(path_, text);
    return read_set_index(*os_, testing::open_source(path_).get(), "the label");
  }

  testing::Watchdog watchdog_;
  testing::TempDirectory folder_;
  const std::string path_ = folder_ / "model.safetensors.index.json";
  const std::unique_ptr<Os> os_ = make_plain_os();
};

TEST_F(SetIndexTest, EachTensorIsInOneOfTheFilesAndTheRestIsPassedOver) {
  const auto index = read(R"({"metadata": {"total_size": 12, "weight_map": {"x": 1}, "list": [{"weight_map": 3}]},
      "weight_map": {"b": "two.safetensors", "a": "one.safetensors", "c": "one.safetensors"}, "more": null})");
  ASSERT_TRUE(index) << index.error().message;
  EXPECT_EQ(index->files, (std::vector<std::string>{"one.safetensors", "two.safetensors"}));
  EXPECT_EQ(index->tensors, (Tensors{{"a", 0}, {"b", 1}, {"c", 0}}));
}

TEST_F(SetIndexTest, AnIndexIsKnownByItsName) {
  EXPECT_TRUE(is_set_index("/m/model.safetensors.index.json"));
  EXPECT_TRUE(is_set_index("model.fp16.safetensors.index.json"));
  for (const char* const other : {"", "model.safetensors", "index.json", "/m/pytorch_model.bin.index.json"}) {
    EXPECT_FALSE(is_set_index(other)) << other;
  }
}

std::string with_files(std::size_t count) {
  std::string map;
  for (std::size_t i = 0; i < count; ++i) {
    map += (map.empty() ? "" : ",") + ("\"t" + std::to_string(i)) + R"(":"f)" + std::to_string(i) + "\"";
  }
  return R"({"weight_map":{)" + map + "}}";
}

struct Refused {
  std::string text, why;
  ErrorCode code = ErrorCode::kDataLoss;
};

TEST_F(SetIndexTest, WhatIsNoIndexIsRefusedWithTheReason) {
  const std::string file = R"({"weight_map":{"a":"FILE"}})";
  const auto named = [&](const std::string& name) { return std::string(file).replace(file.find("FILE"), 4, name); };
  constexpr auto kArgument = ErrorCode::kInvalidArgument;
  const std::vector<Refused> table{
      {"", "not JSON"},
      {"{", "not JSON at byte"},
      {"[]", "not a JSON object"},
      {"7", "not a JSON object"},
      {"{}", "no weight_map"},
      {R"({"weight_map":{}})", "no weight_map"},
      {R"({"weight_map":7})", "a weight_map that is no object"},
      {R"({"weight_map":["a"]})", "a weight_map that is no object"},
      {R"({"weight_map":{"a":7}})", "no file's name for tensor 'a'"},
      {R"({"weight_map":{"a":["f"]}})", "no file's name for tensor 'a'"},
      {R"({"weight_map":{"a":{"b":"f"}}})", "an object in its weight_map"},
      {R"({"weight_map":{"a":"f","a":"g"}})", "tensor 'a' twice"},
      {R"({"weight_map":{"a":"f"},"weight_map":{"b":"g"}})", "two weight_map"},
      {std::string(R"({"weight_map":{"a":"f"}})") + '\0', "a zero byte"},
      {R"({"x":)" + std::string(200, '[') + std::string(200, ']') + "}", "nests over 127"},
      {named(""), "plain names", kArgument},
      {named("."), "plain names", kArgument},
      {named(".."), "plain names", kArgument},
      {named("../f"), "plain names", kArgument},
      {named("/etc/passwd"), "plain names", kArgument},
      {named("sub/f"), "plain names", kArgument},
      {named(R"(f\u0000g)"), "plain names", kArgument},
      {named(std::string(256, 'f')), "plain names", kArgument},
      {with_files(1025), "names 1025 files", kArgument},
  };
  for (const Refused& row : table) {
    const auto index = read(row.text);
    ASSERT_FALSE(index) << row.text.substr(0, 60);
    EXPECT_EQ(index.error().code, row.code) << index.error().message;
    EXPECT_THAT(index.error().message, HasSubstr("'the label'"));
    EXPECT_THAT(index.error().message, HasSubstr(row.why));
    EXPECT_TRUE(valid_utf8(index.error().message));
  }
  EXPECT_TRUE(read(with_files(1024)));
}

TEST_F(SetIndexTest, OneThatIsTooLargeIsNotRead) {
  testing::write_file(path_, "");
  std::filesystem::resize_file(path_, SetIndex::kLargest + 1);
  const auto index = read_set_index(*os_, testing::open_source(path_).get(), "the label");
  ASSERT_FALSE(index);
  EXPECT_EQ(index.error().code, ErrorCode::kResourceExhausted);
}

TEST_F(SetIndexTest, AFailedCallIsATypedErrorThatNamesTheFile) {
  testing::FaultyOs faulty(*os_);
  testing::write_file(path_, with_files(3));
  const Fd file = testing::open_source(path_);
  int failed = 0;
  for (faulty.fail_at(1, EIO); !read_set_index(faulty, file.get(), "the label"); faulty.fail_at(++failed + 1, EIO)) {
    ASSERT_LT(failed, 100);
  }
  EXPECT_GE(failed, 2);
}

}  // namespace
}  // namespace modelbroker
