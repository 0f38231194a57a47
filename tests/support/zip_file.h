// ZipFile: archives as programs write them, and as no program does: each field can be changed in one of its two places.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "tests/support/pickle_text.h"

namespace modelbroker::testing {

struct ZipHeader {
  std::string name;
  std::uint16_t flags = 0, method = 0;
  std::uint32_t checksum = 0x12345678;  // nobody checks it
  std::uint64_t stored = 0, size = 0, offset = 0;
  std::uint16_t disk = 0;
  std::string extra{};
};

struct ZipMember {
  std::string name;
  std::string bytes;
  bool with_descriptor = false;                          // sizes behind the bytes, not before
  bool with_64 = false;                                  // sizes of 64 bits
  std::function<void(ZipHeader&)> local{}, directory{};  // changes
  std::string behind{};                                  // bytes after it
};

struct ZipEnd {
  std::uint64_t entries = 0, size = 0, offset = 0;
  std::uint16_t disk = 0;
  std::string comment{};
};

struct ZipPlan {
  std::vector<ZipMember> members;
  bool with_end64 = false;
  std::function<void(ZipEnd&)> end{}, end64{};
  std::string before_end{};
};

// The extra field of sizes of 64 bits; makes those of 32 bits full.
inline void use_64(ZipHeader& header, bool with_offset) {
  header.extra = little_endian(1, 2) + little_endian(with_offset ? 24 : 16, 2) + little_endian(header.size, 8) +
                 little_endian(header.stored, 8) + (with_offset ? little_endian(header.offset, 8) : "");
  header.size = header.stored = 0xFFFFFFFF;
  if (with_offset) header.offset = 0xFFFFFFFF;
}

[[nodiscard]] inline std::string local_header(const ZipHeader& header) {
  return "PK\x03\x04" + little_endian(20, 2) + little_endian(header.flags, 2) + little_endian(header.method, 2) +
         little_endian(0, 4) + little_endian(header.checksum, 4) + little_endian(header.stored, 4) +
         little_endian(header.size, 4) + little_endian(header.name.size(), 2) + little_endian(header.extra.size(), 2) +
         header.name + header.extra;
}

[[nodiscard]] inline std::string directory_header(const ZipHeader& header) {
  return "PK\x01\x02" + little_endian(20, 2) + little_endian(20, 2) + little_endian(header.flags, 2) +
         little_endian(header.method, 2) + little_endian(0, 4) + little_endian(header.checksum, 4) +
         little_endian(header.stored, 4) + little_endian(header.size, 4) + little_endian(header.name.size(), 2) +
         little_endian(header.extra.size(), 2) + little_endian(0, 2) + little_endian(header.disk, 2) +
         little_endian(0, 6) + little_endian(header.offset, 4) + header.name + header.extra;
}

[[nodiscard]] inline std::string zip_bytes(const ZipPlan& plan) {
  constexpr std::uint16_t kDescriptorFlag = 8;
  std::string archive, directory;
  for (const ZipMember& member : plan.members) {
    ZipHeader header{
        .name = member.name, .stored = member.bytes.size(), .size = member.bytes.size(), .offset = archive.size()};
    if (member.with_descriptor) header.flags = kDescriptorFlag;
    ZipHeader local = header;
    if (member.with_descriptor) local.checksum = 0, local.stored = 0, local.size = 0;
    if (member.with_64 && !member.with_descriptor) use_64(local, false);
    if (member.with_64) use_64(header, true);
    if (member.local) member.local(local);
    if (member.directory) member.directory(header);
    archive += local_header(local) + member.bytes;
    if (member.with_descriptor) {
      const unsigned width = member.with_64 ? 8 : 4;
      archive += "PK\x07\x08" + little_endian(0x12345678, 4) + little_endian(member.bytes.size(), width) +
                 little_endian(member.bytes.size(), width);
    }
    archive += member.behind;
    directory += directory_header(header);
  }
  ZipEnd end{.entries = plan.members.size(), .size = directory.size(), .offset = archive.size()};
  archive += directory + plan.before_end;
  if (plan.with_end64) {
    ZipEnd large = end;
    if (plan.end64) plan.end64(large);
    const std::uint64_t at = archive.size();
    archive += "PK\x06\x06" + little_endian(44, 8) + little_endian(45, 2) + little_endian(45, 2) +
               little_endian(large.disk, 4) + little_endian(0, 4) + little_endian(large.entries, 8) +
               little_endian(large.entries, 8) + little_endian(large.size, 8) + little_endian(large.offset, 8);
    archive += "PK\x06\x07" + little_endian(0, 4) + little_endian(at, 8) + little_endian(1, 4);
    end = {.entries = 0xFFFF, .size = 0xFFFFFFFF, .offset = 0xFFFFFFFF};
  }
  if (plan.end) plan.end(end);
  return archive + "PK\x05\x06" + little_endian(end.disk, 2) + little_endian(0, 2) + little_endian(end.entries, 2) +
         little_endian(end.entries, 2) + little_endian(end.size, 4) + little_endian(end.offset, 4) +
         little_endian(end.comment.size(), 2) + end.comment;
}

}  // namespace modelbroker::testing
