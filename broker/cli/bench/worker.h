// A worker of `modelbroker bench`: speaks as bench_python.py's do. Threads: one.
#pragma once

#include <string>

namespace modelbroker::cli {

// Attaches `model` at the first line of standard input, touches every page, says how long; then, for each further line,
// the memory that it costs. The exit status.
int run_bench_worker(const std::string& model);

}  // namespace modelbroker::cli
