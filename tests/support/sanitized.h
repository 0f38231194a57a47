// kSanitized: built with the address or thread sanitizer, which are slow and have memory of their own.
#pragma once

namespace modelbroker::testing {

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define MODELBROKER_SANITIZED
#endif
#endif
#ifdef MODELBROKER_SANITIZED
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

}  // namespace modelbroker::testing
