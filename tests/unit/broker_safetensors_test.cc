// The directory of a safetensors file: every rule of the format, on real files.
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <array>
#include <memory>
#include <vector>

#include "broker/formats/directory.h"
#include "shm/dtype.h"
#include "shm/text.h"
#include "tests/support/faulty_os.h"
#include "tests/support/safetensors_file.h"
#include "tests/support/temp_directory.h"
#include "tests/support/watchdog.h"

namespace modelbroker {
namespace {

using testing::length_prefix;
using testing::safetensors_bytes;
using testing::u8_tensor;

constexpr const char* kLabel = "the label";

class SafetensorsTest : public ::testing::Test {
 protected:
  [[nodiscard]] Result<Directory> read(const std::string& bytes) {
    testing::write_file(path_, bytes);
    return read_path(path_);
  }
  [[nodiscard]] Result<Directory> read_path(const std::string& path) {
    const Fd file = testing::open_source(path);
    EXPECT_TRUE(file) << path;
    return read_directory(*os_, file.get(), kLabel);
  }
  // Every refusal is typed, names the file and can be sent to a client.
  void expect_refused(const Result<Directory>& result, ErrorCode code, std::string_view word) {
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().code, code) << result.error().message;
    EXPECT_NE(result.error().message.find(kLabel), std::string::npos) << result.error().message;
    EXPECT_NE(result.error().message.find(word), std::string::npos) << result.error().message;
    EXPECT_TRUE(valid_utf8(result.error().message)) << result.error().message;
    EXPECT_EQ(printable(result.error().message, 500), result.error().message);
  }
  void expect_refused(const std::string& bytes, ErrorCode code, std::string_view word) {
    expect_refused(read(bytes), code, word);
  }

  testing::Watchdog watchdog_;
  testing::TempDirectory folder_;
  const std::string path_ = folder_ / "model.safetensors";
  const std::unique_ptr<Os> os_ = make_plain_os();
};

// ---- what is read

TEST_F(SafetensorsTest, ReadsTensorsInTheOrderOfTheirOffsetsAndMetadata) {
  const std::string header = "{" + u8_tensor("last", 10, 5) + R"(,"__metadata__":{"format":"pt","empty":""},)" +
                             R"("first":{"data_offsets":[0,8],"shape":[2,1],"dtype":"F32"},)" +
                             u8_tensor("middle", 8, 2) + "}";
  const auto directory = read(safetensors_bytes(header, std::string(15, 'x')));
  ASSERT_TRUE(directory) << directory.error().message;
  EXPECT_EQ(directory->format, "safetensors");
  EXPECT_EQ(directory->payload, (ByteRange{8 + header.size(), 15}));
  EXPECT_EQ(directory->tensors,
            (std::vector<TensorEntry>{
                {"first", "F32", {2, 1}, 0, 8}, {"middle", "U8", {2}, 8, 2}, {"last", "U8", {5}, 10, 5}}));
  EXPECT_EQ(directory->metadata, (std::map<std::string, std::string>{{"format", "pt"}, {"empty", ""}}));
}

TEST_F(SafetensorsTest, TheSourceIsTheFileAsTheKernelHasIt) {
  const auto directory = read(safetensors_bytes("{}"));
  ASSERT_TRUE(directory) << directory.error().message;
  struct stat found {};
  ASSERT_EQ(::stat(path_.c_str(), &found), 0);
  EXPECT_EQ(directory->source.device, found.st_dev);
  EXPECT_EQ(directory->source.inode, found.st_ino);
  EXPECT_EQ(directory->source.size, 10U);
  EXPECT_EQ(directory->source.mtime_ns, found.st_mtim.tv_sec * 1'000'000'000 + found.st_mtim.tv_nsec);
  EXPECT_EQ(directory->source.ctime_ns, found.st_ctim.tv_sec * 1'000'000'000 + found.st_ctim.tv_nsec);
}

TEST_F(SafetensorsTest, AHeaderMayBeEmptyOrPadded) {
  for (const char* const header : {"{}", "{ }", "{}   ", " {}", "\n\t{}", "{\n\t}\r\n", R"({"__metadata__":{}} )"}) {
    const auto directory = read(safetensors_bytes(header));
    ASSERT_TRUE(directory) << directory.error().message;
    EXPECT_TRUE(directory->tensors.empty());
    EXPECT_TRUE(directory->metadata.empty());
    EXPECT_EQ(directory->payload, (ByteRange{8 + std::string_view(header).size(), 0}));
  }
}

TEST_F(SafetensorsTest, ScalarsAndEmptyTensorsHaveTheirPlaces) {
  const auto directory = read(safetensors_bytes(
      R"({"b":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"z":{"dtype":"F32","shape":[3,0],"data_offsets":[4,4]},)"
      R"("a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"c":{"dtype":"I16","shape":[1,1],"data_offsets":[4,6]}})",
      "123456"));
  ASSERT_TRUE(directory) << directory.error().message;
  ASSERT_EQ(directory->tensors.size(), 4U);
  EXPECT_EQ(directory->tensors[0], (TensorEntry{"a", "U8", {0}, 0, 0}));
  EXPECT_EQ(directory->tensors[1], (TensorEntry{"b", "F32", {}, 0, 4}));
  EXPECT_EQ(directory->tensors[2], (TensorEntry{"z", "F32", {3, 0}, 4, 0}));
  EXPECT_EQ(directory->tensors[3], (TensorEntry{"c", "I16", {1, 1}, 4, 2}));
}

TEST_F(SafetensorsTest, EveryDtypeIsRead) {
  for (const auto& [dtype, bits] : kDtypes) {
    const std::string word(dtype);
    const std::size_t size = bits / 2;  // of four elements
    const auto directory = read(safetensors_bytes(
        R"({"t":{"dtype":")" + word + R"(","shape":[4],"data_offsets":[0,)" + std::to_string(size) + "]}}",
        std::string(size, 'x')));
    ASSERT_TRUE(directory) << word << directory.error().message;
    EXPECT_EQ(directory->tensors.at(0), (TensorEntry{"t", word, {4}, 0, size}));
  }
}

// The list of dtypes is somebody else's and grows: what is not in it is bytes of the size that the file gives.
TEST_F(SafetensorsTest, AnUnknownDtypeIsTakenAtItsWord) {
  for (const std::string word : {"F128", "Q4_0", "f32", "X", "#?~", "12345678901234567890123456789012"}) {
    const auto directory =
        read(safetensors_bytes(R"({"t":{"dtype":")" + word + R"(","shape":[3,5],"data_offsets":[0,4]}})", "data"));
    ASSERT_TRUE(directory) << word << directory.error().message;
    EXPECT_EQ(directory->tensors.at(0), (TensorEntry{"t", word, {3, 5}, 0, 4}));
  }
  expect_refused(safetensors_bytes(R"({"t":{"dtype":"Q4","shape":[4],"data_offsets":[0,5]}})", "data"),
                 ErrorCode::kDataLoss, "truncated");
  expect_refused(safetensors_bytes(R"({"t":{"dtype":"Q4","shape":[4],"data_offsets":[4,0]}})", "data"),
                 ErrorCode::kDataLoss, "no range");
}

TEST_F(SafetensorsTest, NoMetadataMayBeSaidByNull) {
  const auto directory = read(safetensors_bytes(R"({"__metadata__":null,)" + u8_tensor("t", 0, 4) + "}", "data"));
  ASSERT_TRUE(directory) << directory.error().message;
  EXPECT_TRUE(directory->metadata.empty());
  EXPECT_EQ(directory->tensors.size(), 1U);
}

// Writers put fields of their own beside the format's three.
TEST_F(SafetensorsTest, FieldsOfOnesOwnArePassedOver) {
  std::string deep = "1";
  for (int i = 0; i < 125; ++i) deep = (i % 2 == 0 ? R"({"k":)" : "[") + deep + (i % 2 == 0 ? "}" : "]");
  for (const std::string& value :
       {std::string("null"), std::string("true"), std::string("-1"), std::string("17"), std::string("2.5e3"),
        std::string(R"("x\u0041")"), std::string("[]"), std::string("{}"), std::string("[1,[2,{}],null]"),
        std::string(R"({"dtype":"F64","shape":[9],"data_offsets":[7,8],"a":{"a":1,"a":2}})"), deep}) {
    SCOPED_TRACE(value.substr(0, 80));
    for (const std::string& fields : {R"("own":)" + value + R"(,"dtype":"U8","shape":[4],"data_offsets":[0,4])",
                                      R"("dtype":"U8","own":)" + value + R"(,"shape":[4],"own":1,"data_offsets":[0,4])",
                                      R"("dtype":"U8","shape":[4],"data_offsets":[0,4],"own":)" + value}) {
      const auto directory = read(safetensors_bytes(R"({"t":{)" + fields + "}}", "data"));
      ASSERT_TRUE(directory) << directory.error().message;
      EXPECT_EQ(directory->tensors, (std::vector<TensorEntry>{{"t", "U8", {4}, 0, 4}}));
    }
    // Two tensors: what was passed over leaves nothing behind.
    const std::string first = R"("a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"own":)" + value + "}";
    const auto both = read(safetensors_bytes("{" + first + "," + u8_tensor("t", 1, 3) + "}", "data"));
    ASSERT_TRUE(both) << both.error().message;
    EXPECT_EQ(both->tensors.size(), 2U);
  }
}

TEST_F(SafetensorsTest, NamesMayBeAnyText) {
  const auto directory = read(safetensors_bytes("{" + u8_tensor("", 0, 1) + "," +
                                                    u8_tensor("gr\xc3\xbc\xc3\x9f"
                                                              "e",
                                                              1, 1) +
                                                    "," + u8_tensor("\\u0041\\n", 2, 1) + "}",
                                                "abc"));
  ASSERT_TRUE(directory) << directory.error().message;
  EXPECT_EQ(directory->tensors[0].name, "");
  EXPECT_EQ(directory->tensors[1].name,
            "gr\xc3\xbc\xc3\x9f"
            "e");
  EXPECT_EQ(directory->tensors[2].name, "A\n");
}

TEST_F(SafetensorsTest, SixtyFourDimensionsAreAllowed) {
  std::string ones = "1";
  for (int i = 1; i < 64; ++i) ones += ",1";
  const auto file = [](const std::string& shape) {
    return safetensors_bytes(R"({"t":{"dtype":"U8","shape":[)" + shape + R"(],"data_offsets":[0,1]}})", "x");
  };
  EXPECT_TRUE(read(file(ones)));
  expect_refused(file(ones + ",1"), ErrorCode::kDataLoss, "64 dimensions");
}

// ---- what is refused

TEST_F(SafetensorsTest, FilesTooShortForALengthAreDamaged) {
  for (std::size_t size = 0; size < 8; ++size) {
    expect_refused(std::string(size, '\1'), ErrorCode::kDataLoss, "not a whole safetensors file");
  }
}

TEST_F(SafetensorsTest, TheHeadersLengthIsChecked) {
  const auto promising = [](std::uint64_t length) { return length_prefix(length) + "{}"; };
  ASSERT_TRUE(read(promising(2)));
  expect_refused(promising(0), ErrorCode::kDataLoss, "'{'");
  expect_refused(promising(3), ErrorCode::kDataLoss, "should have 3 bytes");
  expect_refused(promising(100'000'000), ErrorCode::kDataLoss, "should have 100000000 bytes");
  expect_refused(promising(100'000'001), ErrorCode::kDataLoss, "at most 100000000");
  expect_refused(promising(1ULL << 63), ErrorCode::kDataLoss, "at most 100000000");
  expect_refused(promising(~std::uint64_t{0}), ErrorCode::kDataLoss, "at most 100000000");
  expect_refused(promising(~std::uint64_t{0} - 7), ErrorCode::kDataLoss, "at most 100000000");
}

struct Malformed {
  const char* what;
  std::string header;
  const char* word;  // part of the message
};

// One tensor "t" of U8 with something else in place of one of its fields; the file has four bytes of data.
std::string entry(const std::string& fields) { return R"({"t":{)" + fields + "}}"; }
std::string with_shape(const std::string& shape) {
  return entry(R"("dtype":"U8","data_offsets":[0,4],"shape":)" + shape);
}
std::string with_offsets(const std::string& offsets) {
  return entry(R"("dtype":"U8","shape":[4],"data_offsets":)" + offsets);
}
std::string with_dtype(const std::string& dtype) {
  return entry(R"("shape":[4],"data_offsets":[0,4],"dtype":)" + dtype);
}
std::string with_metadata(const std::string& metadata) {
  return R"({"__metadata__":)" + metadata + "," + u8_tensor("t", 0, 4) + "}";
}

TEST_F(SafetensorsTest, MalformedHeadersAreRefused) {
  const std::string good = u8_tensor("t", 0, 4);
  ASSERT_TRUE(read(safetensors_bytes(with_shape("[4]"), "data")));
  ASSERT_TRUE(read(safetensors_bytes(with_metadata("{}"), "data")));
  const std::vector<Malformed> cases{
      // JSON
      {"an array", "[1]", "'{'"},
      {"a word first", "x{}", "'{'"},
      {"only white space", " \n\t ", "'{'"},
      {"a byte order mark", "\xef\xbb\xbf{}", "'{'"},
      {"not closed", "{", "JSON"},
      {"a trailing comma", "{" + good + ",}", "JSON"},
      {"a comment", "{/**/" + good + "}", "JSON"},
      {"single quotes", "{'t':1}", "JSON"},
      {"more after the end", "{" + good + "}x", "JSON"},
      {"a second object", "{" + good + "}{}", "JSON"},
      {"a zero byte after the end", "{" + good + "}" + std::string(1, '\0'), "zero byte"},
      {"anything after a zero byte", "{" + good + "}" + std::string("\0more", 5), "zero byte"},
      {"a name not in UTF-8", "{" + u8_tensor("\xff\xfe", 0, 4) + "}", "JSON"},
      {"a long name not in UTF-8", "{" + u8_tensor(std::string(5000, 'x') + "\xc3", 0, 4) + "}", "JSON"},
      {"half a surrogate", "{" + u8_tensor("\\ud800", 0, 4) + "}", "JSON"},
      {"a raw control character", "{" + u8_tensor("a\nb", 0, 4) + "}", "JSON"},
      {"a number without end", with_shape("[1e999]"), "JSON"},
      // names
      {"a name twice", "{" + u8_tensor("t", 0, 2) + "," + u8_tensor("t", 2, 2) + "}", "'t' stands twice"},
      {"a name twice, once escaped", "{" + u8_tensor("t", 0, 2) + "," + u8_tensor("\\u0074", 2, 2) + "}", "twice"},
      {"metadata twice", R"({"__metadata__":{},"__metadata__":{},)" + good + "}", "twice"},
      {"a field twice", entry(R"("dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4])"), "'dtype' twice"},
      {"a metadata key twice", with_metadata(R"({"a":"1","a":"1"})"), "'a' twice"},
      // metadata
      {"metadata is a string", with_metadata(R"("x")"), "__metadata__"},
      {"metadata is an array", with_metadata("[]"), "__metadata__"},
      {"a metadata number", with_metadata(R"({"a":1})"), "'a'"},
      {"a metadata null", with_metadata(R"({"a":null})"), "'a'"},
      {"a metadata object", with_metadata(R"({"a":{}})"), "__metadata__"},
      {"a metadata array", with_metadata(R"({"a":["b"]})"), "'a'"},
      // entries
      {"a tensor is a number", R"({"t":1})", "'t'"},
      {"a tensor is a string", R"({"t":"x"})", "'t'"},
      {"a tensor is an array", R"({"t":[]})", "'t'"},
      {"a tensor is null", R"({"t":null})", "'t'"},
      {"a tensor is empty", R"({"t":{}})", "no dtype"},
      {"no dtype", entry(R"("shape":[4],"data_offsets":[0,4])"), "no dtype"},
      {"no shape", entry(R"("dtype":"U8","data_offsets":[0,4])"), "no shape"},
      {"no data_offsets", entry(R"("dtype":"U8","shape":[4])"), "no data_offsets"},
      {"nothing but an unknown field", entry(R"("scale":1)"), "no dtype"},
      {"an unknown field that is not closed", R"({"t":{"dtype":"U8","own":[1)", "JSON"},
      {"an unknown field too deep", entry(R"("own":)" + std::string(126, '[') + std::string(126, ']')), "nests over"},
      {"an object in a tensor", entry(R"("dtype":{},"shape":[4],"data_offsets":[0,4])"), "'t'"},
      // kinds
      {"a dtype number", with_dtype("8"), "'dtype'"},
      {"a dtype array", with_dtype(R"(["U8"])"), "'dtype'"},
      {"a dtype of none", with_dtype("null"), "'dtype'"},
      {"a shape number", with_shape("4"), "'shape'"},
      {"a shape string", with_shape(R"("4")"), "'shape'"},
      {"a shape of strings", with_shape(R"(["4"])"), "'t'"},
      {"a shape of arrays", with_shape("[[4]]"), "'t'"},
      {"a shape of objects", with_shape("[{}]"), "'t'"},
      {"a shape of booleans", with_shape("[true]"), "'t'"},
      {"a negative dimension", with_shape("[-4]"), "negative"},
      {"a fraction", with_shape("[4.0]"), "not an integer"},
      {"an exponent", with_shape("[4e0]"), "not an integer"},
      {"a dimension of 2^64", with_shape("[18446744073709551616]"), "not an integer"},
      {"offsets that are no array", with_offsets("4"), "'data_offsets'"},
      {"negative offsets", with_offsets("[-4,0]"), "negative"},
      {"offsets of fractions", with_offsets("[0.0,4.0]"), "not an integer"},
      {"no offsets", with_offsets("[]"), "no range"},
      {"one offset", with_offsets("[4]"), "no range"},
      {"three offsets", with_offsets("[0,4,4]"), "no range"},
      {"offsets backwards", with_offsets("[4,0]"), "no range"},
      // sizes
      {"a shape that is too small", with_shape("[3]"), "need 3"},
      {"a shape that is too large", with_shape("[2,3]"), "need 6"},
      {"a scalar of four bytes", with_shape("[]"), "need 1"},
      {"a product of 2^64", with_shape("[4294967296,4294967296]"), "overflows"},
      {"a product of bits", with_shape("[9223372036854775807]"), "overflows"},
      {"half a byte", R"({"t":{"dtype":"F4","shape":[7],"data_offsets":[0,4]}})", "inside a byte"},
      {"a quarter of a byte", R"({"t":{"dtype":"F6_E2M3","shape":[5],"data_offsets":[0,4]}})", "inside a byte"},
      // places
      {"a gap at the start", "{" + u8_tensor("t", 1, 3) + "}", "'t'"},
      {"a gap between", "{" + u8_tensor("a", 0, 1) + "," + u8_tensor("t", 2, 2) + "}", "'t'"},
      {"an overlap", "{" + u8_tensor("a", 0, 3) + "," + u8_tensor("t", 2, 2) + "}", "'t'"},
      {"the same place", "{" + u8_tensor("a", 0, 4) + "," + u8_tensor("t", 0, 4) + "}", "begins at 0"},
      {"one inside another", "{" + u8_tensor("a", 0, 4) + "," + u8_tensor("t", 1, 2) + "}", "'t'"},
      {"bytes after the last tensor", "{" + u8_tensor("t", 0, 3) + "}", "1 bytes follow"},
      {"bytes and no tensors", "{}", "4 bytes follow"},
      {"truncated", "{" + u8_tensor("t", 0, 5) + "}", "truncated"},
      {"far outside", with_offsets("[18446744073709551611,18446744073709551615]"), "'t'"},
      // words that no dtype can have
      {"an empty dtype", with_dtype(R"("")"), "'t'"},
      {"a dtype of 33 characters", with_dtype("\"" + std::string(33, 'x') + "\""), "32 printable"},
      {"a dtype with a space", with_dtype(R"("F 32")"), "'F 32'"},
      {"a dtype that is long and not ASCII", with_dtype("\"x" + std::string(40, '\xc3') + "\""), "JSON"},
      {"a dtype that ends inside a character", with_dtype("\"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\xc3\xbc\""), "'t'"},
      {"a dtype that a terminal would obey", with_dtype(R"("\u001b[2J")"), "'t'"},
      {"a name that ends inside a character", "{" + u8_tensor(std::string(79, 'x') + "\xc3\xbc", 1, 3) + "}",
       "begins at 1"},
      {"a name that a terminal would obey", "{" + u8_tensor("\\u001b[2J\x7f\xc2\x9b", 1, 3) + "}", "begins at 1"},
  };
  for (const Malformed& each : cases) {
    SCOPED_TRACE(each.what);
    expect_refused(safetensors_bytes(each.header, "data"), ErrorCode::kDataLoss, each.word);
  }
}

TEST_F(SafetensorsTest, EveryTruncationIsDamage) {
  const std::string whole = safetensors_bytes("{" + u8_tensor("t", 0, 4) + "}", "data");
  ASSERT_TRUE(read(whole));
  for (std::size_t size = 0; size < whole.size(); ++size) {
    SCOPED_TRACE(size);
    expect_refused(whole.substr(0, size), ErrorCode::kDataLoss, "");
  }
}

struct Other {
  std::string bytes;
  ErrorCode code;
  const char* what;
  const char* remedy;
};

TEST_F(SafetensorsTest, OtherFormatsAreNamedWithTheRemedy) {
  using namespace std::string_literals;
  const std::string rest(600, '\1');
  const std::string torch = "torch.load(path, weights_only=True)";
  const std::vector<Other> cases{
      {"version https://git-lfs.github.com/spec/v1\noid sha256:0123456789abcdef\nsize 4265146304\n",
       ErrorCode::kDataLoss, "a Git LFS pointer", "git lfs pull"},
      {"# xet version 0\nfilesize = 17\nhash = 'ab'\n", ErrorCode::kDataLoss, "a Git Xet pointer", "git-xet"},
      {"<!doctype html>\n<html class=\"\">", ErrorCode::kDataLoss, "an HTML page", "download the file itself"},
      {"\n <!DOCTYPE HTML PUBLIC>\xc3\xbc", ErrorCode::kDataLoss, "an HTML page", "the link"},
      {"<html><head><title>404</title>", ErrorCode::kDataLoss, "an HTML page", "the link"},
      {R"(<?xml version="1.0"?><Error><Code>AccessDenied</Code>)", ErrorCode::kDataLoss, "an XML document",
       "download the file again"},
      {"<Error><Code>NoSuchKey</Code>", ErrorCode::kDataLoss, "an XML document", "download the file again"},
      {R"({"metadata": {"total_size": 17}, "weight_map": {"a": "model-00001-of-00002.safetensors"}})",
       ErrorCode::kUnimplemented, "the JSON index", "ends in .safetensors.index.json"},
      {"{\n  \"metadata\": {\n    \"total_size\": 17\n  },\n" + std::string(1000, ' '), ErrorCode::kUnimplemented,
       "the JSON index", "load it by that one"},
      {R"({"architectures": ["BertModel"], "note": ")"s + "\xc3\xbc\"}", ErrorCode::kInvalidArgument, "a JSON file",
       "give the path of the .safetensors file"},
      {"PK\x03\x04" + rest, ErrorCode::kUnimplemented, "a zip archive", torch.c_str()},
      {"\x80\x02" + rest, ErrorCode::kUnimplemented, "a Python pickle", torch.c_str()},
      {"\x80\x03" + rest, ErrorCode::kUnimplemented, "a Python pickle", torch.c_str()},
      {"\x80\x04" + rest, ErrorCode::kUnimplemented, "a Python pickle", torch.c_str()},
      {"\x80\x05" + rest, ErrorCode::kUnimplemented, "a Python pickle", torch.c_str()},
      {"GGUF\x03" + rest, ErrorCode::kUnimplemented, "GGUF", ".safetensors files"},
      {"\x89HDF\r\n\x1a\n" + rest, ErrorCode::kUnimplemented, "HDF5", "save_file()"},
      {"\x93NUMPY\x01" + rest, ErrorCode::kUnimplemented, "a numpy array", "save_file()"},
      {"\x1f\x8b\x08" + rest, ErrorCode::kUnimplemented, "a gzip archive", "unpack"},
      {"model.safetensors"s + std::string(240, '\0') + "ustar\0"s + rest, ErrorCode::kUnimplemented, "a tar archive",
       "unpack"},
      {"Entry not found", ErrorCode::kDataLoss, "text", "download the file again"},
      // Damaged files of our own format are not taken for another.
      {"\x80\x01" + rest, ErrorCode::kDataLoss, "safetensors", ""},
      {rest, ErrorCode::kDataLoss, "safetensors", ""},
      {"", ErrorCode::kDataLoss, "it has 0 bytes", ""},
  };
  for (const Other& each : cases) {
    SCOPED_TRACE(each.bytes.substr(0, 30));
    expect_refused(each.bytes, each.code, each.what);
    expect_refused(each.bytes, each.code, each.remedy);
  }
  // Headers of such lengths begin as those do.
  EXPECT_TRUE(read(safetensors_bytes("{}" + std::string(638, ' '))));     // a pickle
  EXPECT_TRUE(read(safetensors_bytes("{}" + std::string(0x8b1d, ' '))));  // gzip
  EXPECT_TRUE(read(safetensors_bytes("{}" + std::string('{' - 2, ' '))));
}

TEST_F(SafetensorsTest, OnlyRegularFilesAreRead) {
  expect_refused(read_path(folder_.path()), ErrorCode::kInvalidArgument, "a directory");
  const std::string fifo = folder_ / "fifo";
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  expect_refused(read_path(fifo), ErrorCode::kInvalidArgument, "a pipe");
  expect_refused(read_path("/dev/zero"), ErrorCode::kInvalidArgument, "a device");
  std::array<int, 2> ends{};
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()), 0);
  const Fd one(ends[0]);
  const Fd two(ends[1]);
  expect_refused(read_directory(*os_, one.get(), kLabel), ErrorCode::kInvalidArgument, "a socket");
}

TEST_F(SafetensorsTest, AFailedCallIsATypedErrorThatNamesTheFile) {
  testing::write_file(path_, safetensors_bytes("{}"));
  const Fd file = testing::open_source(path_);
  testing::FaultyOs faulty(*os_);
  for (std::uint64_t call = 1;; ++call) {
    faulty.fail_at(call, EIO);
    const auto directory = read_directory(faulty, file.get(), kLabel);
    if (!faulty.failed_one()) {
      EXPECT_TRUE(directory);
      EXPECT_GT(call, 2U);
      break;
    }
    expect_refused(directory, ErrorCode::kDataLoss, kLabel);
  }
}

TEST_F(SafetensorsTest, AFileThatShrinksMeanwhileIsDamage) {
  testing::write_file(path_, safetensors_bytes("{}"));
  const Fd file = testing::open_source(path_);
  FileIdentity before = identify(*os_, file.get(), kLabel).value();
  testing::write_file(path_, length_prefix(2));
  expect_refused(read_safetensors_directory(*os_, file.get(), kLabel, before), ErrorCode::kDataLoss, "ends inside");
  testing::write_file(path_, "1234");
  expect_refused(read_safetensors_directory(*os_, file.get(), kLabel, before), ErrorCode::kDataLoss, "first bytes");
}

}  // namespace
}  // namespace modelbroker
