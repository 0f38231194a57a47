// The only place with argv and exit.
#include <fcntl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>

#include "broker/cli/commands.h"
#include "broker/cli/output.h"
#include "modelbroker_version.h"
#include "shm/limits.h"

namespace {

// Who starts us without one of them would have our output in the next file or socket that we open.
void fill_standard_descriptors() {
  for (const int standard : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (::fcntl(standard, F_GETFD) < 0) (void)::open("/dev/null", O_RDWR);  // the lowest that is free
  }
}

}  // namespace

int main(int argc, char** argv) {
  using namespace modelbroker::cli;
  fill_standard_descriptors();
  modelbroker::survive_file_size_limit();  // before the first probe makes a file
  CLI::App app{"modelbroker: load model weights once, attach from every process"};
  app.name("modelbroker");
  app.set_version_flag("--version", std::string("modelbroker ") + modelbroker::kVersion);
  app.require_subcommand(1);
  app.footer(
      "Examples:\n"
      "  modelbroker serve &\n"
      "  modelbroker load ./model.safetensors --name m\n"
      "  modelbroker ps\n"
      "  python -c \"import modelbroker; print(len(modelbroker.connect().attach('m').state_dict()))\"\n"
      "\n"
      "'modelbroker COMMAND --help' says more. Exit codes: 0 done, 1 internal, 2 usage, from 10 one per error code.");
  Common common;
  app.add_option("--endpoint", common.endpoint,
                 "ipc:///<run directory>/broker.sock (default: MODELBROKER_ENDPOINT, else the usual places)");
  Action action;
  add_serve_command(app, common, action);
  add_client_commands(app, common, action);
  add_events_command(app, common, action);
  add_scrub_command(app, common, action);
  add_clean_command(app, common, action);
  add_doctor_command(app, common, action);
  add_bench_command(app, common, action);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  return finish_output(action());
}
