#include "shm/error.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <memory>
#include <set>
#include <string>

namespace modelbroker {
namespace {

TEST(ErrorCodes, HaveTheNumbersAndWordsOfTheWire) {
  EXPECT_EQ(static_cast<int>(ErrorCode::kInvalidArgument), 0);
  EXPECT_EQ(static_cast<int>(ErrorCode::kInternal), 12);
  EXPECT_EQ(to_string(ErrorCode::kInvalidArgument), "invalid_argument");
  EXPECT_EQ(to_string(ErrorCode::kResourceExhausted), "resource_exhausted");
  EXPECT_EQ(to_string(ErrorCode::kDataLoss), "data_loss");
  EXPECT_EQ(to_string(ErrorCode::kInternal), "internal");
  std::set<std::string_view> words;
  for (std::uint8_t i = 0; i <= 12; ++i) {
    const auto code = static_cast<ErrorCode>(i);
    EXPECT_EQ(error_code_from(to_string(code)), code);
    words.insert(to_string(code));
  }
  EXPECT_EQ(words.size(), 13U);
}

TEST(ErrorCodes, UnknownOnesAreInternal) {
  EXPECT_EQ(error_code_from("from_the_future"), ErrorCode::kInternal);
  EXPECT_EQ(error_code_from(""), ErrorCode::kInternal);
  EXPECT_EQ(to_string(static_cast<ErrorCode>(200)), "internal");
}

TEST(ErrorFromErrno, ChoosesTheCodeByWhatTheCallerShouldDo) {
  const auto code = [](int number) { return error_from_errno(number, "x").code; };
  EXPECT_EQ(code(ENOENT), ErrorCode::kNotFound);
  EXPECT_EQ(code(EEXIST), ErrorCode::kAlreadyExists);
  EXPECT_EQ(code(EACCES), ErrorCode::kPermissionDenied);
  EXPECT_EQ(code(EPERM), ErrorCode::kPermissionDenied);
  for (const int number : {ENOSPC, ENOMEM, EFAULT, EMFILE, ENFILE, EFBIG, EDQUOT}) {
    EXPECT_EQ(code(number), ErrorCode::kResourceExhausted) << number;
  }
  EXPECT_EQ(code(EIO), ErrorCode::kDataLoss);
  EXPECT_EQ(code(ENOTDIR), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code(ENOSYS), ErrorCode::kUnimplemented);
  EXPECT_EQ(code(EOPNOTSUPP), ErrorCode::kUnimplemented);
  EXPECT_EQ(code(EAGAIN), ErrorCode::kUnavailable);
  EXPECT_EQ(code(ECONNREFUSED), ErrorCode::kUnavailable);
  EXPECT_EQ(code(12345), ErrorCode::kInternal);
}

TEST(ErrorFromErrno, SaysWhatWasDoneAndTheRemedy) {
  const Error full = error_from_errno(ENOSPC, "making '/x'");
  EXPECT_EQ(full.message.find("making '/x': "), 0U);
  EXPECT_NE(full.message.find("free memory"), std::string::npos);
  EXPECT_NE(error_from_errno(EMFILE, "x").message.find("ulimit"), std::string::npos);
  const auto failed = []() -> Result<int> { return fail_errno(EEXIST, "x"); }();
  EXPECT_EQ(failed.error().code, ErrorCode::kAlreadyExists);
}

Result<std::unique_ptr<int>> number_or_error(bool good) {
  if (!good) return fail(ErrorCode::kCancelled, "stopped", {{"at", 7}});
  return std::make_unique<int>(5);
}

Result<int> uses_assign(bool good) {
  MODELBROKER_ASSIGN(const auto number, number_or_error(good));
  MODELBROKER_ASSIGN(const auto again, number_or_error(true));
  return *number + *again;
}

Result<void> uses_try(bool good) {
  if (good) MODELBROKER_TRY(number_or_error(good));
  MODELBROKER_TRY(number_or_error(good));
  return {};
}

TEST(ResultMacros, PassOnErrorsWithTheirDetails) {
  EXPECT_EQ(uses_assign(true).value(), 10);
  EXPECT_EQ(uses_assign(false).error().details.at("at"), 7U);
  EXPECT_TRUE(uses_try(true).has_value());
  EXPECT_EQ(uses_try(false).error().code, ErrorCode::kCancelled);
}

}  // namespace
}  // namespace modelbroker
