// What a field may be, for the structs of this folder; see wire/messages.h.
#pragma once

#include <cstdint>

namespace modelbroker::wire {

enum class Need : std::uint8_t { kOptional, kRequired };

struct Empty {
  template <class Self, class F>
  static void fields(Self&, F&&) {}
};

}  // namespace modelbroker::wire
