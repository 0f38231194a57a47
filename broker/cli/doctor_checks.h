// The checks of `modelbroker doctor`: what kernel, container and limits give, measured rather than guessed.
//
// Threads: one. Failure: none; what cannot be found out is said in the check.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "broker/base/config.h"
#include "shm/os.h"

namespace modelbroker::cli {

enum class Verdict : std::uint8_t {
  kOk,
  kNote,     // works, and costs something
  kProblem,  // a broker would be refused, or would fail under load
};
[[nodiscard]] std::string_view to_string(Verdict verdict) noexcept;

struct Check {
  std::string name;
  Verdict verdict = Verdict::kOk;
  std::string found;
  std::string cost{};    // of doing without; empty if all is well
  std::string remedy{};  // how to get it
};

// Where the kernel and the machine are asked; other folders in tests.
struct Roots {
  std::string proc = "/proc", cgroup = "/sys/fs/cgroup", etc = "/etc", var = "/var";
};

// doctor_memory.cc: the RAM directory, huge pages, memory, swap, the control group.
[[nodiscard]] std::vector<Check> check_memory(Os& os, const Config& config, const Roots& roots = {});
// doctor_host.cc: kernel features, limits, namespaces, the run directory, RemoveIPC.
[[nodiscard]] std::vector<Check> check_host(Os& os, const Config& config, const Roots& roots = {});

}  // namespace modelbroker::cli
