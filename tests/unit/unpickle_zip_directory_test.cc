// Zip archives: what is read, and every way in which two places of one archive may contradict each other.
#include "unpickle/zip_directory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/support/zip_file.h"

namespace modelbroker::unpickle {
namespace {

using ::testing::HasSubstr;
using testing::little_endian;
using testing::zip_bytes;
using testing::ZipEnd;
using testing::ZipHeader;
using testing::ZipMember;
using testing::ZipPlan;

Result<std::vector<ZipEntry>> read(const std::string& bytes) { return read_zip_directory(MemorySource(bytes)); }

// "name=bytes" of each entry.
std::vector<std::string> contents(const std::string& bytes) {
  const auto entries = read(bytes);
  EXPECT_TRUE(entries) << entries.error().message;
  std::vector<std::string> all;
  for (const ZipEntry& entry : entries.value_or(std::vector<ZipEntry>{})) {
    all.push_back(entry.name + "=" + bytes.substr(entry.offset, entry.size));
  }
  return all;
}

TEST(ZipDirectoryTest, EveryFormOfStoredEntriesIsRead) {
  const std::vector<std::string> expected{"a=1", "b/c=", "d=xyz"};
  for (const bool descriptor : {false, true}) {
    for (const bool large : {false, true}) {
      for (const bool end64 : {false, true}) {
        ZipPlan plan{
            .members = {{"a", "1", descriptor, large}, {"b/c", "", descriptor, large}, {"d", "xyz", descriptor, large}},
            .with_end64 = end64};
        EXPECT_EQ(contents(zip_bytes(plan)), expected) << descriptor << large << end64;
      }
    }
  }
}

TEST(ZipDirectoryTest, PaddingCommentsAndGapsAreAllowed) {
  ZipPlan plan{.members = {{"a", "1"}, {"d", "xyz"}}, .end = [](ZipEnd& end) { end.comment = "by hand"; }};
  plan.members[0].local = [](ZipHeader& header) {
    header.extra = "FB" + little_endian(500, 2) + std::string(500, 'Z');
  };
  plan.members[0].behind = "a gap";
  EXPECT_EQ(contents(zip_bytes(plan)), (std::vector<std::string>{"a=1", "d=xyz"}));
  EXPECT_EQ(contents(zip_bytes({})), std::vector<std::string>{});
}

TEST(ZipDirectoryTest, EntriesComeInTheOrderOfTheFile) {
  ZipPlan plan{.members = {{"z", "1"}, {"a", "2"}}};
  EXPECT_EQ(contents(zip_bytes(plan)), (std::vector<std::string>{"z=1", "a=2"}));
}

struct Fault {
  const char* what;
  std::function<void(ZipPlan&)> change;
  ErrorCode code;
  std::string message;
};

class ZipFaultTest : public ::testing::TestWithParam<Fault> {};

TEST_P(ZipFaultTest, IsRefused) {
  ZipPlan plan{.members = {{"a", "1"}, {"b", "22"}}};
  GetParam().change(plan);
  const auto entries = read(zip_bytes(plan));
  ASSERT_FALSE(entries);
  EXPECT_EQ(entries.error().code, GetParam().code) << entries.error().message;
  EXPECT_THAT(entries.error().message, HasSubstr(GetParam().message));
}

constexpr auto kDamaged = ErrorCode::kDataLoss;
constexpr auto kCannot = ErrorCode::kUnimplemented;

std::function<void(ZipPlan&)> local(const std::function<void(ZipHeader&)>& change) {
  return [change](ZipPlan& plan) { plan.members[0].local = change; };
}
std::function<void(ZipPlan&)> listed(const std::function<void(ZipHeader&)>& change) {
  return [change](ZipPlan& plan) { plan.members[0].directory = change; };
}
std::function<void(ZipPlan&)> both(const std::function<void(ZipHeader&)>& change) {
  return [change](ZipPlan& plan) { plan.members[0].local = plan.members[0].directory = change; };
}
std::function<void(ZipPlan&)> end(const std::function<void(ZipEnd&)>& change) {
  return [change](ZipPlan& plan) { plan.end = change; };
}
std::function<void(ZipPlan&)> end64(const std::function<void(ZipEnd&)>& change) {
  return [change](ZipPlan& plan) {
    plan.with_end64 = true;
    plan.end64 = change;
  };
}

const auto kFaults = std::vector<Fault>{
    {"Duplicate", [](ZipPlan& plan) { plan.members[1].name = "a"; }, kDamaged, "entry 'a' stands in it twice"},
    {"Overlap", [](ZipPlan& plan) { plan.members[1].directory = [](ZipHeader& header) { header.offset = 0; }; },
     kDamaged, "disagree"},
    {"SameBytes",
     [](ZipPlan& plan) {
       plan.members[1] = plan.members[0];
       plan.members[1].directory = [](ZipHeader& header) { header.offset = 0; };
     },
     kDamaged, "overlaps"},
    {"OverlapOfData", both([](ZipHeader& header) { header.stored = header.size = 20; }), kDamaged, "overlaps"},
    {"Encrypted", both([](ZipHeader& header) { header.flags = 1; }), kCannot,
     "entry 'a' of its zip archive is encrypted"},
    {"StronglyEncrypted", both([](ZipHeader& header) { header.flags = 0x41; }), kCannot, "encrypted"},
    {"HiddenHeaders", both([](ZipHeader& header) { header.flags = 0x2000; }), kCannot, "encrypted"},
    {"Patch", both([](ZipHeader& header) { header.flags = 0x20; }), kCannot, "patch"},
    {"Compressed", both([](ZipHeader& header) { header.method = 8; }), kCannot,
     "entry 'a' of its zip archive is compressed"},
    {"LocalMethod", local([](ZipHeader& header) { header.method = 8; }), kDamaged, "and the directory disagree"},
    {"LocalFlags", local([](ZipHeader& header) { header.flags = 1; }), kDamaged, "and the directory disagree"},
    {"LocalName", local([](ZipHeader& header) { header.name = "c"; }), kDamaged, "and the directory disagree"},
    {"LocalSize", local([](ZipHeader& header) { header.size = header.stored = 2; }), kDamaged, "disagree"},
    {"LocalZeroSize", local([](ZipHeader& header) { header.size = header.stored = 0; }), kDamaged, "disagree"},
    {"LocalChecksum", local([](ZipHeader& header) { header.checksum = 1; }), kDamaged, "disagree"},
    {"TwoSizes", listed([](ZipHeader& header) { header.size = 2; }), kDamaged, "has two sizes"},
    {"ListedChecksum", listed([](ZipHeader& header) { header.checksum = 1; }), kDamaged, "disagree"},
    {"PastTheEnd", listed([](ZipHeader& header) { header.offset = 0xFFFF; }), kDamaged, "lies past the end"},
    {"LongerThanTheFile", listed([](ZipHeader& header) { header.size = header.stored = 0xFFFFFF; }), kDamaged,
     "lies past the end"},
    {"WrongPlace", listed([](ZipHeader& header) { header.offset = 1; }), kDamaged, "not where the directory says"},
    {"OtherDisk", listed([](ZipHeader& header) { header.disk = 1; }), kDamaged, "another file"},
    {"EmptyName", both([](ZipHeader& header) { header.name = ""; }), kDamaged, "cannot be shown"},
    {"ControlInName", both([](ZipHeader& header) { header.name = "a\n"; }), kDamaged, "cannot be shown"},
    {"NameNotUtf8", both([](ZipHeader& header) { header.name = "\xff"; }), kDamaged, "cannot be shown"},
    {"LongName", both([](ZipHeader& header) { header.name = std::string(2000, 'a'); }), kDamaged, "cannot be shown"},
    {"CutExtra", listed([](ZipHeader& header) { header.extra = "FB\xff\xff"; }), kDamaged, "extra field"},
    {"CutSize64", listed([](ZipHeader& header) {
       header.size = header.stored = 0xFFFFFFFF;
       header.extra = little_endian(1, 2) + little_endian(8, 2) + little_endian(1, 8);
     }),
     kDamaged, "no 64-bit size"},
    {"Size64Twice", listed([](ZipHeader& header) {
       use_64(header, true);
       header.extra += header.extra;
     }),
     kDamaged, "says its size twice"},
    {"HugeSize64", listed([](ZipHeader& header) {
       header.size = header.stored = ~std::uint64_t{0};
       use_64(header, false);
     }),
     kDamaged, "lies past the end"},
    {"Descriptor",
     [](ZipPlan& plan) {
       plan.members[0].with_descriptor = true;
       plan.members[0].directory = [](ZipHeader& header) { header.checksum = 1; };
     },
     kDamaged, "descriptor behind it disagree"},
    {"NoDescriptor", both([](ZipHeader& header) { header.flags = 8; }), kDamaged, "descriptor behind it disagree"},
    {"FewerEntries", end([](ZipEnd& ending) { ending.entries = 1; }), kDamaged, "more entries than it says"},
    {"MoreEntries", end([](ZipEnd& ending) { ending.entries = 3; }), kDamaged, "fewer entries than it says"},
    {"DirectoryElsewhere", end([](ZipEnd& ending) { ending.offset -= 1; }), kDamaged, "does not end where"},
    {"DirectoryPastTheEnd", end([](ZipEnd& ending) { ending.offset = 0xFFFFF; }), kDamaged, "does not end where"},
    {"SeveralFiles", end([](ZipEnd& ending) { ending.disk = 1; }), kCannot, "several files"},
    {"TwoEnds", end([](ZipEnd& ending) { ending.comment = "PK\x05\x06" + std::string(18, '\0'); }), kDamaged,
     "ends in two ways"},
    {"GapBeforeTheEnd", [](ZipPlan& plan) { plan.before_end = "x"; }, kDamaged, "does not end where"},
    {"Ends64Disagree",
     [](ZipPlan& plan) {
       plan.with_end64 = true;
       plan.end = [](ZipEnd& ending) { ending.entries = 1; };
     },
     kDamaged, "two ends disagree"},
    {"Entries64", end64([](ZipEnd& ending) { ending.entries = 1; }), kDamaged, "more entries than it says"},
    {"ManyEntries64", end64([](ZipEnd& ending) { ending.entries = ~std::uint64_t{0}; }), kCannot, "more entries"},
    {"Offset64", end64([](ZipEnd& ending) { ending.offset = ~std::uint64_t{0}; }), kDamaged, "does not end where"},
    {"Size64", end64([](ZipEnd& ending) { ending.size = ~std::uint64_t{0}; }), kDamaged, "does not end where"},
    {"SeveralFiles64", end64([](ZipEnd& ending) { ending.disk = 1; }), kDamaged, "two ends disagree"},
};

INSTANTIATE_TEST_SUITE_P(All, ZipFaultTest, ::testing::ValuesIn(kFaults),
                         [](const auto& each) { return std::string(each.param.what); });

TEST(ZipDirectoryTest, EveryByteMayBeCutOffAtEitherEnd) {
  const std::string whole = zip_bytes({.members = {{"a", "1", true}, {"b", "22", false, true}}, .with_end64 = true});
  ASSERT_TRUE(read(whole));
  for (std::size_t cut = 1; cut <= whole.size(); ++cut) {
    EXPECT_FALSE(read(whole.substr(0, whole.size() - cut))) << cut;
    EXPECT_FALSE(read(whole.substr(cut))) << cut;
  }
}

}  // namespace
}  // namespace modelbroker::unpickle
