#include "broker/cli/programs.h"

#include <filesystem>

#include "shm/text.h"

namespace modelbroker::cli {
namespace {

std::string executable(const std::string& process) {
  std::error_code error;
  const auto path = std::filesystem::read_symlink("/proc/" + process + "/exe", error);
  return error ? "" : path.string();
}

}  // namespace

std::string this_program() {
  std::string path = executable("self");
  return path.empty() ? "modelbroker" : path;
}

BrokerProgram program_of(Os& os, const client::Connection& connection) {
  const auto peer = os.peer_credentials(connection.descriptor());
  if (!peer || peer->pid <= 0) return {};
  return {peer->pid, executable(std::to_string(peer->pid))};
}

std::string to_text(const BrokerProgram& program) {
  if (program.pid == 0) return "in another pid namespace";
  const std::string path = program.path.empty() ? "" : ", " + printable(program.path, 4096);
  return "pid " + std::to_string(program.pid) + path;
}

}  // namespace modelbroker::cli
