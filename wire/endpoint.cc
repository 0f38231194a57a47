#include "wire/endpoint.h"

#include <unistd.h>

#include <cstdlib>
#include <string_view>

namespace modelbroker::wire {
namespace {
constexpr std::size_t kLongestSocketPath = 107;  // sun_path, less its NUL
constexpr std::string_view kScheme = "ipc://";
constexpr std::string_view kSocketName = "/broker.sock";

std::string environment(const char* name) {
  const char* value = std::getenv(name);  // NOLINT(concurrency-mt-unsafe): nobody calls setenv
  return value == nullptr ? std::string() : std::string(value);
}
}  // namespace

Result<Endpoint> Endpoint::in(const std::string& run_directory) {
  Endpoint endpoint{.run_directory = run_directory};
  if (run_directory.empty() || run_directory.front() != '/') {
    return fail(ErrorCode::kInvalidArgument, "the run directory '" + run_directory + "' must be an absolute path");
  }
  if (endpoint.broker_path().size() > kLongestSocketPath) {
    return fail(ErrorCode::kInvalidArgument, "the socket path '" + endpoint.broker_path() + "' has " +
                                                 std::to_string(endpoint.broker_path().size()) +
                                                 " bytes; the kernel allows " + std::to_string(kLongestSocketPath) +
                                                 ": choose a shorter --run-directory");
  }
  return endpoint;
}

Result<Endpoint> Endpoint::parse(const std::string& text) {
  const std::string_view view = text;
  if (!view.starts_with(kScheme) || !view.ends_with(kSocketName) ||
      view.size() <= kScheme.size() + kSocketName.size()) {
    return fail(ErrorCode::kInvalidArgument,
                "the endpoint '" + text + "' must have the form ipc:///<run directory>/broker.sock");
  }
  return in(std::string(view.substr(kScheme.size(), view.size() - kScheme.size() - kSocketName.size())));
}

std::string default_run_directory() {
  if (::geteuid() == 0) return "/run/modelbroker";
  if (const std::string runtime = environment("XDG_RUNTIME_DIR"); !runtime.empty()) {
    return runtime + "/modelbroker";
  }
  return "/tmp/modelbroker-" + std::to_string(::geteuid());
}

Result<std::vector<Endpoint>> endpoints_to_try(const std::string& explicit_endpoint) {
  const std::string chosen = explicit_endpoint.empty() ? environment("MODELBROKER_ENDPOINT") : explicit_endpoint;
  if (!chosen.empty()) {
    MODELBROKER_ASSIGN(auto endpoint, Endpoint::parse(chosen));
    return std::vector<Endpoint>{endpoint};
  }
  std::vector<Endpoint> endpoints;
  MODELBROKER_ASSIGN(auto own, Endpoint::in(default_run_directory()));
  own.owned = own.run_directory.starts_with("/tmp/");
  endpoints.push_back(own);
  if (own.run_directory != "/run/modelbroker") endpoints.push_back(Endpoint{.run_directory = "/run/modelbroker"});
  return endpoints;
}

}  // namespace modelbroker::wire
