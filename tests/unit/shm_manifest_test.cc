#include "shm/manifest.h"

#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <msgpack.hpp>
#include <random>
#include <string>

#include "shm/dtype.h"
#include "tests/support/sanitized.h"

namespace modelbroker {
namespace {

using Packer = msgpack::packer<msgpack::sbuffer>;

std::vector<std::byte> bytes_of(const std::string& text) {
  const auto* const begin = reinterpret_cast<const std::byte*>(text.data());
  return {begin, begin + text.size()};
}

// ---- dtypes

TEST(DtypeBits, KnowsTheWordsOfSafetensors) {
  for (const char* const word : {"BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"})
    EXPECT_EQ(dtype_bits(word), 8U);
  for (const char* const word : {"I16", "U16", "F16", "BF16"}) EXPECT_EQ(dtype_bits(word), 16U);
  for (const char* const word : {"I32", "U32", "F32"}) EXPECT_EQ(dtype_bits(word), 32U);
  for (const char* const word : {"C64", "F64", "I64", "U64"}) EXPECT_EQ(dtype_bits(word), 64U);
  EXPECT_EQ(dtype_bits("F4"), 4U);
  EXPECT_EQ(dtype_bits("F6_E2M3"), 6U);
  EXPECT_EQ(dtype_bits("F6_E3M2"), 6U);
  for (const char* const word : {"", "f32", "F32 ", "F128"}) EXPECT_EQ(dtype_bits(word), 0U);
}

TEST(TensorBytes, MultipliesAndRefuses) {
  const auto bytes = [](std::string_view dtype, const std::vector<std::uint64_t>& shape) {
    return tensor_bytes(dtype, shape);
  };
  EXPECT_EQ(bytes("F32", {}).value(), 4U);
  EXPECT_EQ(bytes("BF16", {3, 5}).value(), 30U);
  EXPECT_EQ(bytes("F32", {0, 5}).value(), 0U);
  EXPECT_EQ(bytes("F4", {2, 3}).value(), 3U);
  EXPECT_EQ(bytes("F6_E2M3", {4}).value(), 3U);
  EXPECT_EQ(bytes("F4", {3}).error().code, ErrorCode::kDataLoss);
  EXPECT_EQ(bytes("F6_E3M2", {}).error().code, ErrorCode::kDataLoss);
  EXPECT_EQ(bytes("F99", {1}).error().code, ErrorCode::kUnimplemented);
  EXPECT_EQ(bytes("U8", {1ULL << 61U, 8}).error().code, ErrorCode::kDataLoss);
  EXPECT_EQ(bytes("F64", {1ULL << 63U, 0}).value(), 0U);  // elements are counted first, as the reference does
  EXPECT_EQ(bytes("F64", {std::numeric_limits<std::uint64_t>::max()}).error().code, ErrorCode::kDataLoss);
}

TEST(TensorBytes, ShowsAnUnknownDtypeInPrintableCharacters) {
  const auto refused = tensor_bytes("\nF\xcc-\x7f.", {});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().message, "dtype '?F?-?.' is not known");
}

TEST(CheckTensorSize, BelievesTheSizeOfAnOpaqueDtypeOnly) {
  const auto code = [](std::string_view dtype, const std::vector<std::uint64_t>& shape, std::uint64_t size) {
    const auto checked = check_tensor_size(dtype, shape, size);
    return checked ? std::string() : std::string(to_string(checked.error().code));
  };
  EXPECT_EQ(code("F32", {2}, 8), "");
  EXPECT_EQ(code("F32", {2}, 7), "data_loss");
  EXPECT_EQ(code("F4", {3}, 2), "data_loss");
  EXPECT_EQ(code("Q4_0", {2}, 7), "");
  EXPECT_EQ(code("Q4_0", {1ULL << 63U, 9}, 0), "");
  EXPECT_EQ(code(std::string(32, '~'), {}, 1), "");
  for (const std::string& word : {std::string(), std::string(33, 'x'), std::string("a b"), std::string("\x7f"),
                                  std::string("\xc3\xbc"), std::string("\0", 1)}) {
    EXPECT_EQ(code(word, {1}, 1), "data_loss") << word;
  }
}

// ---- round trip

std::string random_text(std::mt19937_64& random, std::size_t longest) {
  std::string text(random() % (longest + 1), ' ');
  for (char& c : text) c = static_cast<char>(random() % 256);
  return text;
}

Manifest random_manifest(std::mt19937_64& random, std::uint64_t& payload_size) {
  static constexpr std::array<const char*, 5> kWords{"U8", "BF16", "F32", "I64", "F8_E4M3"};
  Manifest manifest;
  manifest.name = random_text(random, 300);
  manifest.type = random_text(random, 20);
  manifest.format = "safetensors";
  manifest.source_path = random_text(random, 500);
  manifest.source = {random(), random(), random(), static_cast<std::int64_t>(random()),
                     static_cast<std::int64_t>(random())};
  if (random() % 4 == 0) manifest.source_path.clear(), manifest.source = {};  // it was not read from a file
  if (random() % 2 == 0) {
    BlockSet set{random_text(random, 40), 0, {}};
    for (std::size_t i = 1 + random() % 6; i > 0; --i) {
      set.parts.push_back({random_text(random, 40), random(), random(), random(), static_cast<std::int64_t>(random())});
    }
    set.index = random() % set.parts.size();
    manifest.set = std::move(set);
  }
  for (std::size_t i = random() % 5; i > 0; --i) manifest.metadata[random_text(random, 40)] = random_text(random, 4000);
  std::uint64_t at = 0;
  for (std::size_t i = random() % 200; i > 0; --i) {
    TensorEntry tensor;
    tensor.name = std::to_string(i) + "." + random_text(random, 60);
    tensor.dtype = kWords[random() % kWords.size()];
    for (std::size_t rank = random() % 5; rank > 0; --rank) tensor.shape.push_back(random() % 20);
    tensor.offset = at;
    tensor.size = tensor_bytes(tensor.dtype, tensor.shape).value();
    at += tensor.size + random() % 3;
    manifest.tensors.push_back(std::move(tensor));
  }
  payload_size = at;
  return manifest;
}

TEST(ManifestRoundTrip, GivesBackRandomManifests) {
  constexpr std::uint64_t kSeed = 20261124;
  SCOPED_TRACE("seed " + std::to_string(kSeed));
  std::mt19937_64 random(kSeed);
  for (int i = 0; i < 300; ++i) {
    std::uint64_t payload_size = 0;
    const Manifest manifest = random_manifest(random, payload_size);
    const auto again = Manifest::decode(manifest.encode(), payload_size);
    ASSERT_TRUE(again) << again.error().message;
    ASSERT_EQ(*again, manifest);
  }
}

TEST(ManifestRoundTrip, PutsTensorsInTheOrderOfTheirOffsets) {
  Manifest manifest;
  manifest.tensors = {{"late", "U8", {4}, 6, 4}, {"empty", "U8", {0}, 0, 0}, {"early", "U8", {6}, 0, 6}};
  const auto again = Manifest::decode(manifest.encode(), 10);
  ASSERT_TRUE(again) << again.error().message;
  EXPECT_EQ(again->tensors[0].name, "empty");
  EXPECT_EQ(again->tensors[1].name, "early");
  EXPECT_EQ(again->tensors[2].name, "late");
}

TEST(ManifestRoundTrip, EveryTruncationAndEveryAdditionIsRefused) {
  std::mt19937_64 random(7);
  std::uint64_t payload_size = 0;
  Manifest manifest = random_manifest(random, payload_size);
  manifest.tensors.resize(std::min<std::size_t>(manifest.tensors.size(), 5));
  std::vector<std::byte> bytes = manifest.encode();
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    const auto cut = Manifest::decode(std::span(bytes).first(size), payload_size);
    ASSERT_FALSE(cut) << size;
    ASSERT_EQ(cut.error().code, ErrorCode::kDataLoss);
  }
  bytes.push_back(std::byte{0xc0});
  EXPECT_EQ(Manifest::decode(bytes, payload_size).error().code, ErrorCode::kDataLoss);
}

TEST(ManifestRoundTrip, AFlippedBitIsRefusedOrStaysInsideTheRules) {
  std::mt19937_64 random(11);
  std::uint64_t payload_size = 0;
  Manifest manifest = random_manifest(random, payload_size);
  manifest.metadata.clear();
  manifest.tensors.resize(std::min<std::size_t>(manifest.tensors.size(), 40));  // bits times bytes
  const std::vector<std::byte> good = manifest.encode();
  for (std::size_t bit = 0; bit < good.size() * 8; bit += testing::kSanitized ? 31 : 1) {
    std::vector<std::byte> bytes = good;
    bytes[bit / 8] ^= std::byte{1} << (bit % 8);
    const auto decoded = Manifest::decode(bytes, payload_size);
    if (!decoded) {
      const bool newer = decoded.error().message.find("needs a newer") != std::string::npos;
      ASSERT_EQ(decoded.error().code, newer ? ErrorCode::kUnimplemented : ErrorCode::kDataLoss);
      continue;
    }
    for (const TensorEntry& tensor : decoded->tensors) {
      ASSERT_LE(tensor.offset, payload_size);
      ASSERT_LE(tensor.size, payload_size - tensor.offset);
      ASSERT_TRUE(check_tensor_size(tensor.dtype, tensor.shape, tensor.size));
    }
  }
}

// ---- hostile input: a manifest of 100 bytes of payload, with one part replaced

struct Parts {
  std::function<void(Packer&)> version = [](Packer& out) { out.pack(1); };
  std::function<void(Packer&)> name = [](Packer& out) { out.pack("n"); };
  std::function<void(Packer&)> source = [](Packer& out) {
    out.pack_map(6);
    out.pack("path"), out.pack("p");
    for (const char* const key : {"device", "inode", "size", "mtime_ns", "ctime_ns"}) out.pack(key), out.pack(1);
  };
  std::function<void(Packer&)> metadata = [](Packer& out) { out.pack_map(0); };
  std::function<void(Packer&)> tensors = [](Packer& out) { out.pack_array(0); };
  std::function<void(Packer&)> extra;  // packs one key and its value
};

Result<Manifest> decode(const Parts& parts) {
  msgpack::sbuffer buffer;
  Packer out(buffer);
  out.pack_map(parts.extra ? 8 : 7);
  out.pack("version"), parts.version(out);
  out.pack("name"), parts.name(out);
  out.pack("type"), out.pack("t");
  out.pack("format"), out.pack("safetensors");
  out.pack("source"), parts.source(out);
  out.pack("metadata"), parts.metadata(out);
  out.pack("tensors"), parts.tensors(out);
  if (parts.extra) parts.extra(out);
  return Manifest::decode(std::as_bytes(std::span(buffer.data(), buffer.size())), 100);
}

void expect_refused(const Parts& parts, const char* what, ErrorCode code = ErrorCode::kDataLoss) {
  const auto decoded = decode(parts);
  ASSERT_FALSE(decoded) << what;
  EXPECT_EQ(decoded.error().code, code) << what;
}
void expect_unknown(const Parts& parts, const char* what) { expect_refused(parts, what, ErrorCode::kUnimplemented); }

// Packs tensors [name, "U8", [size], offset, size].
auto tensors(std::vector<std::tuple<std::string, std::uint64_t, std::uint64_t>> list) {
  return [list](Packer& out) {
    out.pack_array(static_cast<std::uint32_t>(list.size()));
    for (const auto& [name, offset, size] : list) {
      out.pack_array(5);
      out.pack(name), out.pack("U8"), out.pack(std::vector<std::uint64_t>{size}), out.pack(offset), out.pack(size);
    }
  };
}

TEST(ManifestDecode, TakesWhatTheDocumentAllows) {
  EXPECT_TRUE(decode({}));
  Parts parts;
  parts.tensors = tensors({{"a", 0, 60}, {"b", 60, 40}, {"empty at the end", 100, 0}});
  EXPECT_TRUE(decode(parts));
}

TEST(ManifestDecode, BelievesTheSizeOfAnUnknownDtype) {
  Parts parts;
  parts.tensors = [](Packer& out) {
    out.pack_array(1), out.pack_array(5);
    out.pack("a"), out.pack("Q4_0"), out.pack(std::vector<std::uint64_t>{4, 7}), out.pack(3), out.pack(97);
  };
  const auto decoded = decode(parts);
  ASSERT_TRUE(decoded) << decoded.error().message;
  EXPECT_EQ(decoded->tensors, (std::vector<TensorEntry>{{"a", "Q4_0", {4, 7}, 3, 97}}));
}

TEST(ManifestDecode, IgnoresFurtherFieldsOfATensor) {
  Parts parts;
  parts.tensors = [](Packer& out) {
    out.pack_array(1), out.pack_array(7);
    out.pack("a"), out.pack("U8"), out.pack(std::vector<std::uint64_t>{4}), out.pack(0), out.pack(4);
    out.pack("more"), out.pack_nil();
  };
  const auto decoded = decode(parts);
  ASSERT_TRUE(decoded) << decoded.error().message;
  EXPECT_EQ(decoded->tensors, (std::vector<TensorEntry>{{"a", "U8", {4}, 0, 4}}));
}

TEST(ManifestDecode, RefusesSetsThatAreNotUnderstoodOrNotPossible) {
  const auto set = [](std::uint64_t index, std::uint32_t parts, std::uint32_t fields) {
    return [=](Packer& out) {
      out.pack("set"), out.pack_map(3), out.pack("id"), out.pack("s"), out.pack("index"), out.pack(index);
      out.pack("parts"), out.pack_array(parts);
      for (std::uint32_t i = 0; i < parts; ++i) {
        out.pack_map(fields), out.pack("name"), out.pack("n");
        for (std::uint32_t field = 1; field < fields; ++field) {
          out.pack(std::array{"", "device", "inode", "size", "mtime_ns"}[field]), out.pack(1);
        }
      }
    };
  };
  Parts parts;
  parts.extra = set(1, 2, 5);
  const auto decoded = decode(parts);
  ASSERT_TRUE(decoded) << decoded.error().message;
  EXPECT_EQ(decoded->set, (BlockSet{"s", 1, {{"n", 1, 1, 1, 1}, {"n", 1, 1, 1, 1}}}));
  parts.extra = set(2, 2, 5);
  expect_refused(parts, "an index that is none of its parts");
  parts.extra = set(0, 0, 5);
  expect_refused(parts, "a set without parts");
  parts.extra = set(0, 1, 4);
  expect_unknown(parts, "a part without its mtime");
  parts.extra = set(0, BlockSet::kMaxParts + 1, 5);
  expect_unknown(parts, "too many parts");
  parts.extra = [](Packer& out) { out.pack("set"), out.pack(7); };
  expect_unknown(parts, "a set that is a number");
}

TEST(ManifestDecode, IgnoresUnknownKeysOfAnyKind) {
  Parts parts;
  for (const auto& value : std::vector<std::function<void(Packer&)>>{
           [](Packer& out) { out.pack_nil(); }, [](Packer& out) { out.pack(1.5); },
           [](Packer& out) { out.pack_bin(3), out.pack_bin_body("abc", 3); },
           [](Packer& out) { out.pack_ext(2, 5), out.pack_ext_body("ab", 2); },
           [](Packer& out) {
             out.pack(std::map<std::string, std::vector<int>>{{"k", {1, 2}}});
           }}) {
    parts.extra = [&](Packer& out) { out.pack("from a later version"), value(out); };
    const auto decoded = decode(parts);
    EXPECT_TRUE(decoded) << decoded.error().message;
  }
}

TEST(ManifestDecode, RefusesWrongKinds) {
  const std::vector<std::function<void(Packer&)>> values{
      [](Packer& out) { out.pack_nil(); },    [](Packer& out) { out.pack(-1); },
      [](Packer& out) { out.pack(true); },    [](Packer& out) { out.pack(1.5); },
      [](Packer& out) { out.pack_array(0); }, [](Packer& out) { out.pack_bin(1), out.pack_bin_body("n", 1); },
  };
  for (std::size_t i = 0; i < values.size(); ++i) {
    Parts parts;
    parts.version = values[i];
    expect_refused(parts, "version");
    parts = {};
    parts.name = values[i];
    expect_unknown(parts, "name");
    parts = {};
    parts.source = values[i];
    expect_unknown(parts, "source");
    parts = {};
    parts.metadata = values[i];
    expect_unknown(parts, "metadata");
    parts = {};
    parts.tensors = [&](Packer& out) { out.pack_array(1), values[i](out); };
    expect_unknown(parts, "a tensor");
  }
  Parts parts;
  parts.tensors = [](Packer& out) { out.pack_map(0); };
  expect_unknown(parts, "tensors as a map");
  parts = {};
  parts.metadata = [](Packer& out) { out.pack_map(1), out.pack("k"), out.pack(1); };
  expect_unknown(parts, "metadata with a number");
  parts.metadata = [](Packer& out) { out.pack_map(1), out.pack(1), out.pack("v"); };
  expect_unknown(parts, "metadata with a key that is a number");
  parts = {};
  parts.version = [](Packer& out) { out.pack(0); };
  expect_refused(parts, "version 0");
}

TEST(ManifestDecode, ALaterVersionIsUnimplementedWhateverElseItHas) {
  const auto later = [](Packer& out) { out.pack(2); };
  std::vector<Parts> cases(4);
  cases[1].tensors = [](Packer& out) { out.pack("in another form"); };
  cases[2].extra = [](Packer& out) { out.pack(7), out.pack("a key that is a number"); };
  cases[3].metadata = [](Packer& out) {
    for (int i = 0; i < 20; ++i) out.pack_array(1);
    out.pack_nil();
  };
  for (Parts& parts : cases) {
    parts.version = later;
    const auto decoded = decode(parts);
    ASSERT_FALSE(decoded);
    EXPECT_EQ(decoded.error().code, ErrorCode::kUnimplemented) << decoded.error().message;
    EXPECT_TRUE(decoded.error().message.find("version 2 needs a newer modelbroker") != std::string::npos)
        << decoded.error().message;
  }
}

TEST(ManifestDecode, RefusesDuplicates) {
  Parts parts;
  parts.extra = [](Packer& out) { out.pack("name"), out.pack("again"); };
  expect_refused(parts, "key");
  parts = {};
  parts.metadata = [](Packer& out) { out.pack_map(2), out.pack("k"), out.pack("v"), out.pack("k"), out.pack("v"); };
  expect_refused(parts, "metadata");
  parts = {};
  parts.tensors = tensors({{"a", 0, 4}, {"a", 4, 4}});
  expect_refused(parts, "tensor name");
}

TEST(ManifestDecode, RefusesTensorsOutsideTheRules) {
  const std::uint64_t huge = std::numeric_limits<std::uint64_t>::max();
  Parts parts;
  for (const auto& [offset, size] : std::vector<std::pair<std::uint64_t, std::uint64_t>>{
           {0, 101}, {100, 1}, {101, 0}, {huge, 1}, {1, huge}, {huge, huge}, {huge - 1, 2}}) {
    parts.tensors = tensors({{"a", offset, size}});
    expect_refused(parts, "outside the payload");
  }
  parts.tensors = tensors({{"a", 50, 4}, {"b", 0, 4}});
  expect_refused(parts, "out of order");

  const auto tensor = [&](const char* dtype, std::vector<std::uint64_t> shape, std::uint64_t size) {
    parts.tensors = [=](Packer& out) {
      out.pack_array(1), out.pack_array(5);
      out.pack("a"), out.pack(dtype), out.pack(shape), out.pack(0), out.pack(size);
    };
  };
  tensor("U8", {5}, 4);
  expect_refused(parts, "size does not fit the shape");
  tensor("Q4_0", {4}, 101);
  expect_refused(parts, "an unknown dtype outside the payload");
  for (const char* const word : {"", "a b", "a dtype's word of over 32 bytes.", "\x1b[2J", "\xc3\xbc"}) {
    tensor(word, {4}, 4);
    expect_unknown(parts, "not a word for a dtype");
  }
  tensor("U8", {1ULL << 63U, 2}, 0);
  expect_refused(parts, "product overflows");
  tensor("U8", std::vector<std::uint64_t>(65, 1), 1);
  expect_unknown(parts, "rank 65");
  for (const std::uint32_t items : {0U, 4U}) {
    parts.tensors = [=](Packer& out) {
      out.pack_array(1), out.pack_array(items);
      for (std::uint32_t i = 0; i < items; ++i) out.pack("a");
    };
    expect_unknown(parts, "less than five fields");
  }
}

TEST(ManifestDecode, IsNotFooledByLengths) {
  using namespace std::string_literals;
  const std::vector<std::string> bombs{
      ""s,
      "\xdd\xff\x00\x00\x00"s,      // an array of 4 thousand million
      "\xdf\xff\xff\xff\xff"s,      // a map of as many
      "\xdb\xff\xff\xff\xff"s,      // a string of 4 GiB
      "\xc6\xff\xff\xff\xff"s,      // bytes of 4 GiB
      "\xc9\xff\xff\xff\xff\x01"s,  // an extension of 4 GiB
      "\x81\xa7tensors\xdd\xff\x00\x00\x00"s,
      std::string(100'000, '\x91'),  // arrays in arrays
      std::string(100'000, '\x81'),  // maps in maps
      "\x80"s,
      "\xc1"s,  // never used
      "\xa1x"s,
  };
  for (const std::string& bomb : bombs) {
    const auto decoded = Manifest::decode(bytes_of(bomb), 100);
    ASSERT_FALSE(decoded);
    EXPECT_EQ(decoded.error().code, ErrorCode::kDataLoss);
  }
}

TEST(ManifestDecode, RandomBytesNeverPass) {
  constexpr std::uint64_t kSeed = 99;
  std::mt19937_64 random(kSeed);
  for (int i = 0; i < 20'000; ++i) {
    EXPECT_FALSE(Manifest::decode(bytes_of(random_text(random, 64)), 1ULL << 40U));
  }
}

TEST(FileIdentity, ComparesAllOrAllButCtime) {
  const FileIdentity one{1, 2, 3, 4, 5};
  FileIdentity other = one;
  EXPECT_EQ(one, other);
  other.ctime_ns = 6;
  EXPECT_NE(one, other);
  EXPECT_TRUE(one.same_but_ctime(other));
  other.mtime_ns = 6;
  EXPECT_FALSE(one.same_but_ctime(other));
}

TEST(FileIdentity, IsAlikeWhereSizeAndMtimeAreEqual) {
  const FileIdentity one{1, 2, 3, 4, 5};
  EXPECT_TRUE(one.alike({7, 8, 3, 4, 9}));
  EXPECT_FALSE(one.same_but_ctime({7, 2, 3, 4, 5}));
  EXPECT_FALSE(one.same_but_ctime({1, 8, 3, 4, 5}));
  EXPECT_FALSE(one.alike({1, 2, 4, 4, 5}));
  EXPECT_FALSE(one.alike({1, 2, 3, 5, 5}));
}

}  // namespace
}  // namespace modelbroker
