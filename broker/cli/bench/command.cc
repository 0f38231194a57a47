// `modelbroker bench`: a user's own numbers on their file and machine, beside what they use today.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>

#include "bench_python.h"
#include "broker/base/sizes.h"
#include "broker/cli/bench/processes.h"
#include "broker/cli/bench/tidier.h"
#include "broker/cli/bench/worker.h"
#include "broker/cli/commands.h"
#include "broker/cli/output.h"
#include "broker/cli/programs.h"
#include "cpp_client/broker.h"
#include "cpp_client/connection.h"
#include "cpp_client/paths.h"
#include "shm/text.h"

namespace modelbroker::cli {
namespace {

struct Arguments {
  std::string model, png, python = "python3";
  unsigned workers = 4, runs = 3;
  bool python_named = false;  // by --python; else it may be absent
  bool no_torch_load = false, as_worker = false;
};

// One way to get at weights, and what it cost. Nothing where it was not measured.
struct Way {
  std::string name;                         // "modelbroker", "safetensors", "torch.load"
  std::string missing;                      // why it was not measured
  std::optional<double> worker_seconds{};   // one worker, every page touched
  std::optional<double> opened_seconds{};   // of that, until it had its tensors
  std::optional<double> workers_seconds{};  // the slowest of all at once
  std::optional<double> workers_bytes{};    // PSS of the weights, all together
};

struct Results {
  std::string file;
  std::uint64_t payload_bytes = 0;
  std::string page_kind;
  double load_seconds = 0;    // best of the runs, the file in the page cache
  double attach_seconds = 0;  // best of the runs, nothing touched
  std::vector<Way> ways;
};

// Starts `count` workers, lets them go at once, and hears them.
Result<void> measure(Way& way, const std::vector<std::string>& words, unsigned count) {
  std::vector<Process> workers;
  for (unsigned i = 0; i < count; ++i) {
    MODELBROKER_ASSIGN(auto worker, Process::start(words));
    workers.push_back(std::move(worker));
  }
  for (Process& worker : workers) MODELBROKER_TRY(worker.hear());
  for (const Process& worker : workers) worker.prompt();
  double slowest = 0;
  double opened = 0;
  for (Process& worker : workers) {
    MODELBROKER_ASSIGN(const Json told, worker.hear());
    slowest = std::max(slowest, told.value("seconds", 0.0));
    opened = std::max(opened, told.value("opened", 0.0));
  }
  double bytes = 0;
  for (Process& worker : workers) {
    worker.prompt();
    MODELBROKER_ASSIGN(const Json told, worker.hear());
    bytes += told.value("memory", 0.0);
  }
  for (Process& worker : workers) MODELBROKER_TRY(worker.finish());
  const auto keep_best = [](std::optional<double>& best, double value) {
    best = std::min(best.value_or(value), value);
  };
  if (count == 1) {
    keep_best(way.worker_seconds, slowest);
    keep_best(way.opened_seconds, opened);
  } else {
    keep_best(way.workers_seconds, slowest);
    way.workers_bytes = bytes;
  }
  return {};
}

Result<void> measure_often(Way& way, const std::vector<std::string>& words, const Arguments& arguments,
                           const std::string& said) {
  for (unsigned run = 0; run < arguments.runs; ++run) {
    std::fprintf(stderr, "%s, run %u of %u\n", said.c_str(), run + 1, arguments.runs);
    MODELBROKER_TRY(measure(way, words, 1));
    if (arguments.workers > 1) MODELBROKER_TRY(measure(way, words, arguments.workers));
  }
  return {};
}

double seconds_since(std::chrono::steady_clock::time_point began) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
}

Result<void> measure_broker(Results& results, const Arguments& arguments, const Folder& folder) {
  MODELBROKER_ASSIGN(const BenchBroker broker, BenchBroker::start(folder));
  ::setenv("MODELBROKER_ENDPOINT", broker.endpoint().c_str(), 1);  // for the workers
  MODELBROKER_ASSIGN(auto client, Broker::connect({.endpoint = broker.endpoint()}));
  std::fprintf(stderr, "loading %s\n", results.file.c_str());
  MODELBROKER_ASSIGN(Loaded loaded,
                     client.load(results.file, {.name = "model"}));  // what is not in the page cache is now
  results.load_seconds = loaded.seconds;
  for (unsigned run = 1; run < arguments.runs; ++run) {
    if (Interrupted::yes()) return fail(ErrorCode::kCancelled, "interrupted");
    MODELBROKER_TRY(client.unload("model", {.wait = true}));
    MODELBROKER_ASSIGN(loaded, client.load(results.file, {.name = "model"}));
    results.load_seconds = std::min(results.load_seconds, loaded.seconds);
  }
  results.payload_bytes = loaded.payload_bytes;
  results.page_kind = loaded.page_kind;
  results.attach_seconds = 1e9;
  for (unsigned i = 0; i < 100; ++i) {
    const auto began = std::chrono::steady_clock::now();
    MODELBROKER_TRY(client.attach("model"));
    results.attach_seconds = std::min(results.attach_seconds, seconds_since(began));
  }
  Way& way = results.ways.emplace_back(Way{.name = "modelbroker", .missing = ""});
  return measure_often(way, {this_program(), "bench", "--as-worker", "model"}, arguments, "modelbroker");
}

Result<void> measure_python(Results& results, const Arguments& arguments, const Folder& folder, const Json& has) {
  const auto python = [&](std::vector<std::string> words) {
    words.insert(words.begin(), {arguments.python, "-c", kBenchPython});
    return words;
  };
  const bool installed = has.value("safetensors", false) && has.value("torch", false);
  const std::string missing = installed ? "" : "safetensors and torch are not installed for " + arguments.python;
  Way& safetensors = results.ways.emplace_back(Way{.name = "safetensors", .missing = missing});
  if (installed) {
    MODELBROKER_TRY(
        measure_often(safetensors, python({"worker", "safetensors", results.file}), arguments, "safetensors"));
  }
  Way& torch_load = results.ways.emplace_back(
      Way{.name = "torch.load", .missing = arguments.no_torch_load ? "--no-torch-load" : missing});
  if (torch_load.missing.empty()) {
    std::fprintf(stderr, "writing a checkpoint for torch.load, of the same size, into a temporary folder\n");
    MODELBROKER_ASSIGN(auto convert, Process::start(python({"convert", results.file, folder / "model.pt"})));
    MODELBROKER_TRY(convert.finish());
    MODELBROKER_TRY(
        measure_often(torch_load, python({"worker", "torch", folder / "model.pt"}), arguments, "torch.load"));
  }
  return {};
}

std::string seconds_text(const std::optional<double>& seconds) {
  if (!seconds) return "-";
  char text[32];
  std::snprintf(text, sizeof text, *seconds < 0.1 ? "%.4f s" : "%.2f s", *seconds);
  return text;
}

Json to_json(const Results& results, const Arguments& arguments) {
  Json json{{"file", results.file},
            {"payload_bytes", results.payload_bytes},
            {"page_kind", results.page_kind},
            {"workers", arguments.workers},
            {"runs", arguments.runs},
            {"load_seconds", results.load_seconds},
            {"attach_seconds", results.attach_seconds},
            {"ways", Json::array()}};
  const auto value = [](const std::optional<double>& number) { return number ? Json(*number) : Json(nullptr); };
  for (const Way& way : results.ways) {
    Json one{{"name", way.name},
             {"worker_seconds", value(way.worker_seconds)},
             {"opened_seconds", value(way.opened_seconds)},
             {"workers_seconds", value(way.workers_seconds)},
             {"workers_bytes", value(way.workers_bytes)}};
    if (!way.missing.empty()) one["missing"] = way.missing;
    json["ways"].push_back(std::move(one));
  }
  return json;
}

void print(const Results& results, const Arguments& arguments) {
  std::printf("%s: %s of weights, %s pages\n", printable(results.file, 4096).c_str(),
              format_size(results.payload_bytes).c_str(), results.page_kind.c_str());
  std::printf("loaded once for all, from the page cache: %s; attached, nothing touched: %.0f us\n\n",
              seconds_text(results.load_seconds).c_str(), results.attach_seconds * 1e6);
  const std::string all = std::to_string(arguments.workers) + " workers";
  Table table({"", "one worker", "its tensors after", all + " at once", "memory of " + all});
  for (const Way& way : results.ways) {
    table.add({way.name, seconds_text(way.worker_seconds), seconds_text(way.opened_seconds),
               seconds_text(way.workers_seconds),
               way.workers_bytes ? format_size(static_cast<std::uint64_t>(*way.workers_bytes)) : "-"});
  }
  table.print();
  for (const Way& way : results.ways) {
    if (!way.missing.empty()) std::printf("%s was not measured: %s\n", way.name.c_str(), way.missing.c_str());
  }
  std::printf(
      "\nA worker's time: until it has its tensors and has read from each of their pages; libraries imported before.\n"
      "Best of %u; memory: the proportional set size of the weights. safetensors shares the page cache, which the\n"
      "kernel may drop; the broker's block stays.\n",
      arguments.runs);
}

Result<Json> ask_python(const Arguments& arguments) {
  MODELBROKER_ASSIGN(auto process, Process::start({arguments.python, "-c", kBenchPython, "has"}));
  auto has = process.hear();
  if (has || has.error().code == ErrorCode::kCancelled) return has;
  if (arguments.python_named) {
    return fail(ErrorCode::kInvalidArgument, "--python '" + printable(arguments.python) +
                                                 "' does not run as a Python 3; leave it out to measure the broker "
                                                 "alone where there is no python3");
  }
  std::fprintf(stderr, "no python3 here: the broker is measured alone (--python names another)\n");
  return Json::object();
}

// Asked before all the measuring. Nothing is left of the question.
Result<void> can_be_written(Os& os, const std::string& path) {
  if (path.empty()) return {};
  const bool is_new = ::access(path.c_str(), F_OK) != 0;
  const auto file = os.open(path, O_WRONLY | O_CREAT | O_NONBLOCK | O_CLOEXEC, 0666);
  if (!file) return fail_errno(file.error().number, "writing '" + printable(path) + "'");
  if (is_new) ::unlink(path.c_str());
  return {};
}

Result<void> bench(const Common& common, const Arguments& arguments) {
  const Interrupted guard;
  const std::unique_ptr<Os> os = make_plain_os();
  tidy_up_after_dead_benches(*os);
  Results results;
  results.file = client::absolute_path(arguments.model);
  MODELBROKER_TRY(client::open_source(*os, results.file));
  MODELBROKER_TRY(can_be_written(*os, arguments.png));
  MODELBROKER_ASSIGN(const Json has, ask_python(arguments));
  if (!arguments.png.empty() && !has.value("matplotlib", false)) {
    return fail(ErrorCode::kFailedPrecondition, "--png needs matplotlib, which " + arguments.python +
                                                    " does not have: 'pip install matplotlib', or use --json");
  }
  MODELBROKER_ASSIGN(const Folder sockets, Folder::below("/tmp"));  // TMPDIR may be too deep for a socket's path
  MODELBROKER_ASSIGN(const Folder folder, Folder::below(temporary_place()));
  MODELBROKER_ASSIGN(const Tidier tidier, Tidier::start({sockets.path(), folder.path()}));
  MODELBROKER_TRY(measure_broker(results, arguments, sockets));
  MODELBROKER_TRY(measure_python(results, arguments, folder, has));
  const Json json = to_json(results, arguments);
  if (common.json) {
    std::printf("%s\n", json.dump(2, ' ', false, Json::error_handler_t::replace).c_str());
  } else {
    print(results, arguments);
  }
  if (arguments.png.empty()) return {};
  MODELBROKER_ASSIGN(auto plot, Process::start({arguments.python, "-c", kBenchPython, "plot", arguments.png}));
  plot.write(json.dump());
  return plot.finish();
}

}  // namespace

void add_bench_command(CLI::App& app, Common& common, Action& action) {
  auto* const command =
      add_verb(app, "bench", "measure loading and attaching of your file, compared with what you use today",
               "  modelbroker bench ./model.safetensors\n"
               "  modelbroker bench ./model.safetensors --workers 8 --python venv/bin/python --png bench.png");
  auto arguments = std::make_shared<Arguments>();
  command->add_option("FILE", arguments->model, "a .safetensors file")->required();
  command->add_option("--workers", arguments->workers, "how many workers start at once (default: 4)")
      ->check(CLI::Range(1, 64));
  command->add_option("--runs", arguments->runs, "how often to measure; the best run counts (default: 3)")
      ->check(CLI::Range(1, 100));
  const auto* const python = command->add_option(
      "--python", arguments->python, "interpreter whose safetensors and torch are measured (default: python3)");
  command->add_flag("--no-torch-load", arguments->no_torch_load,
                    "leave out torch.load, which needs a copy of the file in TMPDIR and memory for each worker");
  command->add_option("--png", arguments->png, "also draw the results into this file (needs matplotlib)")
      ->type_name("FILE");
  add_json_flag(*command, common);
  command->add_flag("--as-worker", arguments->as_worker)->group("");  // inside
  command->footer(
      "It starts and stops a broker of its own: yours is not disturbed. safetensors and torch.load are measured if "
      "the\n"
      "Python interpreter has them.\n" +
      command->get_footer());
  command->callback([&common, &action, arguments, python] {
    arguments->python_named = python->count() > 0;
    action = [&common, arguments] {
      if (arguments->as_worker) return run_bench_worker(arguments->model);
      const Result<void> done = bench(common, *arguments);
      return done ? kExitOk : report(done.error(), common.json);
    };
  });
}

}  // namespace modelbroker::cli
