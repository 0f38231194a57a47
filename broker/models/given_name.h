// What is known of a model's name beside the block that it stands for.
#pragma once

#include <cstdint>
#include <string>

namespace modelbroker {

struct GivenName {
  std::uint32_t loader = 0;  // who gave it
  std::string path;          // of the file that it was given to; names of one block may differ in it (links)
  bool is_label = false;     // a group member told that path: it is shown, and nothing is found or opened by it
  std::uint64_t asked = 0;   // when: the order of loads; 0 before this broker's time. Not kept over a restart
};

}  // namespace modelbroker
