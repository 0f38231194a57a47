// Rules: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
#include "unpickle/zip_directory.h"

#include <algorithm>
#include <optional>
#include <span>
#include <string_view>
#include <utility>

#include "shm/text.h"
#include "unpickle/bounds.h"

namespace modelbroker::unpickle {
namespace {

constexpr std::uint32_t kLocalHeader = 0x04034b50, kDirectoryHeader = 0x02014b50, kEnd = 0x06054b50,
                        kEnd64 = 0x06064b50, kLocator64 = 0x07064b50, kDescriptor = 0x08074b50;
constexpr std::uint64_t kLocalSize = 30, kDirectorySize = 46, kEndSize = 22, kEnd64Size = 56, kLocatorSize = 20;
constexpr std::uint16_t kEncrypted = 1U << 0U, kHasDescriptor = 1U << 3U, kPatched = 1U << 5U,
                        kStronglyEncrypted = 1U << 6U, kMaskedHeader = 1U << 13U;
constexpr std::uint16_t kExtra64 = 1, kMax16 = 0xFFFF;
constexpr std::uint32_t kMax32 = 0xFFFFFFFF;
constexpr std::size_t kShownName = 80;

tl::unexpected<Error> damaged(std::string_view why) {
  return fail(ErrorCode::kDataLoss, "its zip archive is damaged: " + std::string(why));
}

tl::unexpected<Error> damaged(std::string_view name, std::string_view why) {
  return damaged("entry '" + printable(name, kShownName) + "' " + std::string(why));
}

template <class Number>
Number number_at(std::span<const std::byte> bytes, std::size_t at) {
  Number number = 0;
  for (std::size_t i = 0; i < sizeof number; ++i) {
    number = static_cast<Number>(number | static_cast<Number>(std::to_integer<Number>(bytes[at + i]) << (8 * i)));
  }
  return number;
}

// What a header says of its entry; offset and disk only in the directory.
struct Header {
  std::uint16_t flags = 0, method = 0;
  std::uint32_t checksum = 0;
  std::uint64_t stored = 0, size = 0, offset = 0;
  std::string_view name;
  std::span<const std::byte> extra;
};

// Takes the 64-bit numbers that stand for those of 32 bits that are full, in their order. Each field once at most.
Result<void> take_extra64(Header& header, std::uint64_t* offset, std::uint32_t disk) {
  bool seen = false;
  for (auto rest = header.extra; rest.size() >= 4;) {
    const auto id = number_at<std::uint16_t>(rest, 0);
    const auto size = number_at<std::uint16_t>(rest, 2);
    if (size > rest.size() - 4) return damaged(header.name, "has an extra field that does not end");
    auto field = rest.subspan(4, size);
    rest = rest.subspan(4U + size);
    if (id != kExtra64) continue;
    if (std::exchange(seen, true)) return damaged(header.name, "says its size twice");
    for (std::uint64_t* number : {&header.size, &header.stored, offset}) {
      if (number == nullptr || *number != kMax32) continue;
      if (field.size() < 8) return damaged(header.name, "has no 64-bit size");
      *number = number_at<std::uint64_t>(field, 0);
      field = field.subspan(8);
    }
    if (disk == kMax16 && (field.size() < 4 || number_at<std::uint32_t>(field, 0) != 0)) {
      return damaged(header.name, "lies in another file");
    }
  }
  return {};
}

// Where the directory is. Numbers of 64 bits count where those of 16 and 32 are full, and must agree where not.
struct Place {
  std::uint64_t entries = 0, size = 0, offset = 0;
  std::uint64_t end = 0;  // where it must end
};

bool agrees(std::uint64_t small, std::uint64_t large, std::uint64_t full) { return small == large || small == full; }

Result<std::uint64_t> find_end(std::span<const std::byte> tail) {
  std::optional<std::uint64_t> found;
  for (std::size_t at = tail.size() - kEndSize + 1; at-- > 0;) {
    if (number_at<std::uint32_t>(tail, at) != kEnd) continue;
    if (at + kEndSize + number_at<std::uint16_t>(tail, at + 20) != tail.size()) continue;
    if (found) return damaged("it ends in two ways");
    found = at;
  }
  if (!found) return damaged("its end is missing: it was cut, or has something behind it");
  return *found;
}

Result<Place> place64(const ByteSource& source, const Place& small, std::uint64_t end) {
  if (end < kLocatorSize + kEnd64Size) return small;
  MODELBROKER_ASSIGN(const auto locator, source.read(end - kLocatorSize, kLocatorSize));
  if (number_at<std::uint32_t>(locator, 0) != kLocator64) return small;
  const auto at = number_at<std::uint64_t>(locator, 8);
  if (number_at<std::uint32_t>(locator, 4) != 0 || number_at<std::uint32_t>(locator, 16) != 1) {
    return fail(ErrorCode::kUnimplemented, "its zip archive consists of several files");
  }
  if (at != end - kLocatorSize - kEnd64Size) return damaged("its 64-bit end is not where it says");
  MODELBROKER_ASSIGN(const auto record, source.read(at, kEnd64Size));
  if (number_at<std::uint32_t>(record, 0) != kEnd64 || number_at<std::uint64_t>(record, 4) != kEnd64Size - 12) {
    return damaged("its 64-bit end is not one");
  }
  const Place large{number_at<std::uint64_t>(record, 32), number_at<std::uint64_t>(record, 40),
                    number_at<std::uint64_t>(record, 48), at};
  const bool one_file = number_at<std::uint32_t>(record, 16) == 0 && number_at<std::uint32_t>(record, 20) == 0 &&
                        number_at<std::uint64_t>(record, 24) == large.entries;
  if (!one_file || !agrees(small.entries, large.entries, kMax16) || !agrees(small.size, large.size, kMax32) ||
      !agrees(small.offset, large.offset, kMax32)) {
    return damaged("its two ends disagree");
  }
  return large;
}

Result<Place> find_directory(const ByteSource& source) {
  if (source.size() < kEndSize) return damaged("it is too short");
  const std::uint64_t tail_size = std::min<std::uint64_t>(source.size(), kEndSize + kMax16);
  const std::uint64_t tail_at = source.size() - tail_size;
  MODELBROKER_ASSIGN(const auto tail, source.read(tail_at, tail_size));
  MODELBROKER_ASSIGN(const std::uint64_t at, find_end(tail));
  const auto record = std::span(tail).subspan(static_cast<std::size_t>(at), kEndSize);
  const bool one_file = number_at<std::uint32_t>(record, 4) == 0 &&
                        number_at<std::uint16_t>(record, 8) == number_at<std::uint16_t>(record, 10);
  if (!one_file) return fail(ErrorCode::kUnimplemented, "its zip archive consists of several files");
  const std::uint64_t end = tail_at + at;
  const Place small{number_at<std::uint16_t>(record, 10), number_at<std::uint32_t>(record, 12),
                    number_at<std::uint32_t>(record, 16), end};
  MODELBROKER_ASSIGN(const Place place, place64(source, small, end));
  if (place.offset > place.end || place.size != place.end - place.offset) {
    return damaged("its directory does not end where the archive's end begins");
  }
  if (place.entries > kMaxZipEntries || place.size > kMaxZipDirectoryBytes) {
    return fail(ErrorCode::kUnimplemented, "its zip archive has more entries than are read");
  }
  return place;
}

Result<void> check_header(const Header& header) {
  if (header.name.empty() || header.name.size() > kMaxZipNameBytes || !valid_utf8(header.name) ||
      printable(header.name, kMaxZipNameBytes) != header.name) {
    return damaged(header.name, "has a name that cannot be shown");
  }
  const auto refuse = [&](std::string_view what) {
    return fail(ErrorCode::kUnimplemented, "entry '" + printable(header.name, kShownName) + "' of its zip archive is " +
                                               std::string(what) +
                                               ": load it with torch and torch.save(model.state_dict(), ...)");
  };
  if ((header.flags & (kEncrypted | kStronglyEncrypted | kMaskedHeader)) != 0) return refuse("encrypted");
  if ((header.flags & kPatched) != 0) return refuse("a patch");
  if (header.method != 0) return refuse("compressed");
  if (header.stored != header.size) return damaged(header.name, "has two sizes");
  return {};
}

Result<Header> directory_header(std::span<const std::byte>& rest) {
  if (rest.size() < kDirectorySize || number_at<std::uint32_t>(rest, 0) != kDirectoryHeader) {
    return damaged("its directory has fewer entries than it says");
  }
  const std::size_t name = number_at<std::uint16_t>(rest, 28), extra = number_at<std::uint16_t>(rest, 30);
  const std::size_t all = kDirectorySize + name + extra + number_at<std::uint16_t>(rest, 32);
  if (all > rest.size()) return damaged("its directory ends inside an entry");
  Header header{.flags = number_at<std::uint16_t>(rest, 8),
                .method = number_at<std::uint16_t>(rest, 10),
                .checksum = number_at<std::uint32_t>(rest, 16),
                .stored = number_at<std::uint32_t>(rest, 20),
                .size = number_at<std::uint32_t>(rest, 24),
                .offset = number_at<std::uint32_t>(rest, 42),
                .name = text_of(rest.subspan(kDirectorySize, name)),
                .extra = rest.subspan(kDirectorySize + name, extra)};
  const auto disk = number_at<std::uint16_t>(rest, 34);
  if (disk != 0 && disk != kMax16) return damaged(header.name, "lies in another file");
  MODELBROKER_TRY(take_extra64(header, &header.offset, disk));
  MODELBROKER_TRY(check_header(header));
  rest = rest.subspan(all);
  return header;
}

// A descriptor stands behind an entry's bytes: with or without a signature, with sizes of 32 or 64 bits.
bool descriptor_agrees(std::span<const std::byte> bytes, const Header& header) {
  for (const std::size_t skip : {std::size_t{4}, std::size_t{0}}) {
    if (bytes.size() < skip + 12 || (skip != 0 && number_at<std::uint32_t>(bytes, 0) != kDescriptor)) continue;
    if (number_at<std::uint32_t>(bytes, skip) != header.checksum) continue;
    if (number_at<std::uint32_t>(bytes, skip + 4) == header.size &&
        number_at<std::uint32_t>(bytes, skip + 8) == header.size) {
      return true;
    }
    if (bytes.size() >= skip + 20 && number_at<std::uint64_t>(bytes, skip + 4) == header.size &&
        number_at<std::uint64_t>(bytes, skip + 12) == header.size) {
      return true;
    }
  }
  return false;
}

// Sizes and checksum of a local header are those of the directory, or all zero where a descriptor has them.
bool sizes_agree(const Header& local, const Header& listed) {
  if (local.size == listed.size && local.stored == listed.stored && local.checksum == listed.checksum) return true;
  return (listed.flags & kHasDescriptor) != 0 && local.size == 0 && local.stored == 0 && local.checksum == 0;
}

// Reads the local header and returns where the bytes of the entry begin.
Result<ZipEntry> check_local(const ByteSource& source, const Header& listed, std::uint64_t limit) {
  constexpr std::uint64_t kUsual = 320;  // with name and padding: one read does
  if (listed.offset > limit || limit - listed.offset < kLocalSize) return damaged(listed.name, "lies past the end");
  MODELBROKER_ASSIGN(auto bytes, source.read(listed.offset, std::min(kUsual, limit - listed.offset)));
  if (number_at<std::uint32_t>(bytes, 0) != kLocalHeader)
    return damaged(listed.name, "is not where the directory says");
  const std::size_t name = number_at<std::uint16_t>(bytes, 26), extra = number_at<std::uint16_t>(bytes, 28);
  const std::uint64_t all = kLocalSize + name + extra;
  if (all > limit - listed.offset || listed.size > limit - listed.offset - all) {
    return damaged(listed.name, "lies past the end");
  }
  if (all > bytes.size()) {
    MODELBROKER_ASSIGN(bytes, source.read(listed.offset, all));
  }
  const std::span<const std::byte> whole(bytes);
  Header local{.flags = number_at<std::uint16_t>(whole, 6),
               .method = number_at<std::uint16_t>(whole, 8),
               .checksum = number_at<std::uint32_t>(whole, 14),
               .stored = number_at<std::uint32_t>(whole, 18),
               .size = number_at<std::uint32_t>(whole, 22),
               .name = text_of(whole.subspan(kLocalSize, name)),
               .extra = whole.subspan(kLocalSize + name, extra)};
  MODELBROKER_TRY(take_extra64(local, nullptr, 0));
  const bool same = local.name == listed.name && local.flags == listed.flags && local.method == listed.method;
  if (!same || !sizes_agree(local, listed)) return damaged(listed.name, "and the directory disagree");
  return ZipEntry{std::string(listed.name), listed.offset, listed.offset + all, listed.size};
}

// REQUIRES: entries in the order of the file. None reaches into the next, nor into the directory at `limit`.
Result<void> check_overlaps(std::span<const ZipEntry> entries, std::uint64_t limit) {
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const std::uint64_t next = i + 1 < entries.size() ? entries[i + 1].header : limit;
    if (entries[i].offset > next || entries[i].size > next - entries[i].offset) {
      return damaged(entries[i].name, "overlaps what follows it");
    }
  }
  return {};
}

Result<void> check_unique(std::span<const ZipEntry> entries) {
  std::vector<std::string_view> names;
  for (const ZipEntry& entry : entries) names.push_back(entry.name);
  std::ranges::sort(names);
  const auto twice = std::ranges::adjacent_find(names);
  if (twice != names.end()) return damaged(*twice, "stands in it twice");
  return {};
}

// Where the local header leaves size and checksum to a descriptor, that is read too.
Result<void> check_descriptor(const ByteSource& source, const Header& listed, const ZipEntry& entry,
                              std::uint64_t limit) {
  constexpr std::uint64_t kLongest = 24;
  if ((listed.flags & kHasDescriptor) == 0) return {};
  const std::uint64_t at = entry.offset + entry.size;
  MODELBROKER_ASSIGN(const auto bytes, source.read(at, std::min(kLongest, limit - at)));
  if (descriptor_agrees(bytes, listed)) return {};
  return damaged(entry.name, "and the descriptor behind it disagree");
}

}  // namespace

Result<std::vector<ZipEntry>> read_zip_directory(const ByteSource& source) {
  MODELBROKER_ASSIGN(const Place place, find_directory(source));
  MODELBROKER_ASSIGN(const auto directory, source.read(place.offset, place.size));
  std::vector<ZipEntry> entries;
  std::span<const std::byte> rest(directory);
  for (std::uint64_t i = 0; i < place.entries; ++i) {
    MODELBROKER_ASSIGN(const Header listed, directory_header(rest));
    MODELBROKER_ASSIGN(ZipEntry entry, check_local(source, listed, place.offset));
    MODELBROKER_TRY(check_descriptor(source, listed, entry, place.offset));
    entries.push_back(std::move(entry));
  }
  if (!rest.empty()) return damaged("its directory has more entries than it says");
  std::ranges::sort(entries, {}, &ZipEntry::header);
  MODELBROKER_TRY(check_overlaps(entries, place.offset));
  MODELBROKER_TRY(check_unique(entries));
  return entries;
}

}  // namespace modelbroker::unpickle
