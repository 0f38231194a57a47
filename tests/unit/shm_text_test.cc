// What may be shown, stored or sent as text.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "shm/text.h"

namespace modelbroker {
namespace {

// One code point as UTF-8, by the definition; also of those that may not stand there.
std::string encoded(std::uint32_t point) {
  const auto byte = [](std::uint32_t bits) { return static_cast<char>(bits); };
  if (point < 0x80) return {byte(point)};
  if (point < 0x800) return {byte(0xC0 | point >> 6), byte(0x80 | (point & 63))};
  if (point < 0x10000) return {byte(0xE0 | point >> 12), byte(0x80 | (point >> 6 & 63)), byte(0x80 | (point & 63))};
  return {byte(0xF0 | point >> 18), byte(0x80 | (point >> 12 & 63)), byte(0x80 | (point >> 6 & 63)),
          byte(0x80 | (point & 63))};
}

// ---- valid_utf8

TEST(Utf8Test, EveryCodePointIsJudgedAsUnicodeSays) {
  for (std::uint32_t point = 0; point < 0x110000; ++point) {
    const bool surrogate = point >= 0xD800 && point < 0xE000;
    ASSERT_EQ(valid_utf8(encoded(point)), !surrogate) << std::hex << point;
  }
  for (std::uint32_t point = 0x110000; point < 0x200000; ++point) ASSERT_FALSE(valid_utf8(encoded(point)));
}

TEST(Utf8Test, EmptyAndMixedTextIsValid) {
  EXPECT_TRUE(valid_utf8(""));
  EXPECT_TRUE(valid_utf8(std::string_view("a\0b", 3)));
  EXPECT_TRUE(valid_utf8("a\xc3\xbc\xe2\x82\xac\xf0\x9f\x98\x80z"));
}

TEST(Utf8Test, OverlongFormsAreRefused) {
  for (const char* const bad :
       {"\xc0\x80", "\xc0\xaf", "\xc1\xbf", "\xe0\x80\x80", "\xe0\x9f\xbf", "\xf0\x80\x80\x80", "\xf0\x8f\xbf\xbf"}) {
    EXPECT_FALSE(valid_utf8(bad)) << bad;
  }
}

TEST(Utf8Test, BrokenSequencesAreRefusedWhereverTheyStand) {
  for (const std::string bad : {"\x80", "\xbf", "\xc3", "\xe2\x82", "\xe2", "\xf0\x9f\x98", "\xc3\xc3", "\xe2\x28\xa1",
                                "\xf0\x9f\x28\x80", "\xf5\x80\x80\x80", "\xf8\x88\x80\x80\x80", "\xfe", "\xff"}) {
    EXPECT_FALSE(valid_utf8(bad));
    EXPECT_FALSE(valid_utf8("before" + bad));
    EXPECT_FALSE(valid_utf8(bad + "after"));
    EXPECT_FALSE(valid_utf8("\xc3\xbc" + bad + "\xc3\xbc"));
  }
}

// ---- valid_model_name

TEST(ModelNameTest, OrdinaryNamesAreValid) {
  for (const char* const good : {"a", "flux", "a/b", "with space", "-", "...", ".x", "..x", "a/..x", "~",
                                 "gr\xc3\xbc\xc3\x9f"
                                 "e",
                                 "a'\"\\b"}) {
    EXPECT_TRUE(valid_model_name(good)) << good;
  }
}

TEST(ModelNameTest, TheLengthIsCountedInBytes) {
  EXPECT_FALSE(valid_model_name(""));
  EXPECT_TRUE(valid_model_name(std::string(255, 'x')));
  EXPECT_FALSE(valid_model_name(std::string(256, 'x')));
  std::string wide;
  for (int i = 0; i < 127; ++i) wide += "\xc3\xbc";
  EXPECT_TRUE(valid_model_name(wide + "x"));
  EXPECT_FALSE(valid_model_name(wide + "\xc3\xbc"));
}

TEST(ModelNameTest, APathAControlCharacterOrDamageIsRefused) {
  EXPECT_FALSE(valid_model_name("/a"));
  EXPECT_FALSE(valid_model_name("/"));
  for (int c = 0; c < 0x20; ++c) EXPECT_FALSE(valid_model_name(std::string("a") + static_cast<char>(c) + "b")) << c;
  EXPECT_FALSE(valid_model_name("a\x7f"));
  EXPECT_FALSE(valid_model_name("a\xff"));
  EXPECT_FALSE(valid_model_name("a\xc3"));
}

TEST(ModelNameTest, WhatLooksLikeAPathIsRefused) {
  for (const char* const bad : {".", "..", "./x", "../x", "a/./b", "a/../b", "a/..", "a//b", "a/", "//"}) {
    EXPECT_FALSE(valid_model_name(bad)) << bad;
  }
}

// What two names may differ by, and nobody sees it.
const std::vector<std::string> kUnseenCharacters{
    "\xc2\x80",          // U+0080, a control character
    "\xc2\xad",          // U+00AD soft hyphen
    "\xcd\x8f",          // U+034F combining grapheme joiner
    "\xd8\x9c",          // U+061C Arabic letter mark
    "\xe2\x80\x8b",      // U+200B zero-width space
    "\xe2\x80\x8f",      // U+200F right-to-left mark
    "\xe2\x80\xa8",      // U+2028 line separator
    "\xe2\x80\xae",      // U+202E right-to-left override
    "\xe2\x81\xa0",      // U+2060 word joiner
    "\xe2\x81\xa7",      // U+2067 right-to-left isolate
    "\xe3\x85\xa4",      // U+3164 Hangul filler
    "\xef\xb8\x8f",      // U+FE0F variation selector
    "\xef\xbb\xbf",      // U+FEFF byte order mark
    "\xf3\xa0\x81\xa1",  // U+E0061 tag
};

TEST(ModelNameTest, WhatNobodySeesIsRefusedReplacedAndEscaped) {
  for (const std::string& unseen : kUnseenCharacters) {
    const std::string name = "a" + unseen + "b";
    EXPECT_FALSE(valid_model_name(name)) << printable(name);
    EXPECT_EQ(replace_unseen(name), "a_b");
    EXPECT_EQ(printable(name).find(unseen), std::string::npos);
  }
  for (const std::string seen : {"\xd9\x85\xd8\xaf\xd9\x84", "\xe6\xa8\xa1\xe5\x9e\x8b", "\xf0\x9f\x98\x80"}) {
    EXPECT_TRUE(valid_model_name(seen)) << seen;
    EXPECT_EQ(replace_unseen(seen), seen);
    EXPECT_EQ(printable(seen), seen);
  }
  EXPECT_EQ(replace_unseen("a\n\xff\xc3z"), "a___z");
}

// ---- printable

TEST(PrintableTest, PlainTextStaysAsItIs) {
  for (const char* const text : {"", "plain", "a\xc3\xbc\xe2\x82\xac\xf0\x9f\x98\x80z", "\xc2\xa0"}) {
    EXPECT_EQ(printable(text), text);
  }
}

TEST(PrintableTest, ControlCharactersAndDamageAreEscaped) {
  EXPECT_EQ(printable("a\nb\tc\x1b[2J\x7f"), "a\\x0ab\\x09c\\x1b[2J\\x7f");
  EXPECT_EQ(printable(std::string_view("\0", 1)), "\\x00");
  EXPECT_EQ(printable("\xff\xc3\xbc\xc3"), "\\xff\xc3\xbc\\xc3");
  EXPECT_EQ(printable("\xe2\x82z"), "\\xe2\\x82z");
  EXPECT_EQ(printable("\xc2\x80\xc2\x9b\xc2\x9f"), "\\xc2\\x80\\xc2\\x9b\\xc2\\x9f");  // C1: a terminal may obey
}

TEST(PrintableTest, LongTextIsClippedBetweenCharacters) {
  EXPECT_EQ(printable("abcdef", 6), "abcdef");
  EXPECT_EQ(printable("abcdefg", 6), "abcdef...");
  EXPECT_EQ(printable("abc\xc3\xbc\xc3\xbc", 4), "abc\xc3\xbc...");
  EXPECT_EQ(printable("abc", 0), "...");
  EXPECT_EQ(printable("", 0), "");
  EXPECT_EQ(printable(std::string(1000, 'x')), std::string(200, 'x') + "...");
}

TEST(PrintableTest, WhateverGoesInTextComesOut) {
  for (unsigned first = 0; first < 256; ++first) {
    for (unsigned second = 0; second < 256; ++second) {
      for (const char* const rest : {"", "\x80", "\x80\x80", "x"}) {
        const std::string text = std::string{static_cast<char>(first), static_cast<char>(second)} + rest;
        const std::string shown = printable(text, 8);
        ASSERT_TRUE(valid_utf8(shown)) << first << " " << second;
        ASSERT_LE(shown.size(), 8U + 3 + 3);
        for (const char c : shown) ASSERT_FALSE(static_cast<unsigned char>(c) < 0x20 || c == 0x7f) << first;
      }
    }
  }
}

}  // namespace
}  // namespace modelbroker
