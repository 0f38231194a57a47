// `modelbroker events`: what happens, a line an event.
#include <fnmatch.h>
#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <memory>

#include "broker/base/sizes.h"
#include "broker/cli/commands.h"
#include "broker/cli/json.h"
#include "broker/cli/output.h"
#include "cpp_client/events.h"
#include "shm/os.h"
#include "shm/text.h"

namespace modelbroker::cli {
namespace {

using client::EventStream;

struct Arguments {
  std::vector<std::string> types;
  bool snapshot_only = false;
};

std::string shown(const std::string& text) { return printable(text, 4096); }

bool matches(const std::string& pattern, std::string_view type) {
  return ::fnmatch(pattern.c_str(), std::string(type).c_str(), 0) == 0;
}

// A pattern that is misspelt would stay silent for ever.
Result<void> check_types(const std::vector<std::string>& patterns) {
  for (const std::string& pattern : patterns) {
    const auto fits = [&](std::string_view type) { return matches(pattern, type); };
    if (std::ranges::any_of(wire::kEventTypes, fits)) continue;
    std::string known;
    for (const std::string_view type : wire::kEventTypes) known.append(known.empty() ? "" : ", ").append(type);
    return fail(ErrorCode::kInvalidArgument, "--types: '" + shown(pattern) + "' matches none of " + known);
  }
  return {};
}

double now() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

std::string clock_text(double seconds) {
  const auto whole = static_cast<std::time_t>(std::floor(seconds));
  std::tm local{};
  ::localtime_r(&whole, &local);
  std::array<char, 32> text{};
  const std::size_t length = std::strftime(text.data(), text.size(), "%Y-%m-%d %H:%M:%S", &local);
  std::array<char, 8> fraction{};
  std::snprintf(fraction.data(), fraction.size(), ".%03d", static_cast<int>((seconds - std::floor(seconds)) * 1000));
  return std::string(text.data(), length) + fraction.data();
}

// Fields that are set, in the order of the document.
std::string details(const wire::EventData& data) {
  std::string text;
  wire::EventData::fields(data, [&]<class T>(const std::string& name, const T& value) {
    if (value == T() || name == "model") return;
    if constexpr (std::is_same_v<T, std::string>) {
      text += "  " + name + "=" + shown(value);
    } else if constexpr (std::is_same_v<T, std::vector<wire::ModelBlock>>) {
      if (value.size() > 1) text += "  " + name + "=" + std::to_string(value.size());
    } else if (name.ends_with("bytes")) {
      text += "  " + name + "=" + format_size(value);
    } else {
      text += "  " + name + "=" + std::to_string(value);
    }
  });
  return text;
}

void print_line(const Json& json) {
  std::printf("%s\n", json.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
}

void print_snapshot(const EventStream::Snapshot& snapshot, bool json) {
  const wire::EventsSnapshotReply& state = snapshot.state;
  const double time = now();
  if (json) {
    return print_line({{"boot_id", state.boot_id},
                       {"seq", state.seq},
                       {"type", "snapshot"},
                       {"time", time},
                       {"data",
                        {{"reason", to_string(snapshot.why)},
                         {"models", to_json(state.models)},
                         {"draining", to_json(state.draining)},
                         {"tiers", to_json(state.tiers)}}}});
  }
  const char* why = "";
  if (snapshot.why == EventStream::Why::kGap) why = "events were missed: ";
  if (snapshot.why == EventStream::Why::kRestart) why = "the broker was restarted: ";
  std::string tiers;
  for (const auto& [name, tier] : state.tiers) {
    tiers += "  " + name + "=" + format_size(tier.made) + " of " + format_size(tier.limit) +
             "  leases=" + std::to_string(tier.leases);
  }
  std::printf("%s  snapshot  %sboot_id=%s  seq=%llu  models=%zu  draining=%zu%s\n", clock_text(time).c_str(), why,
              shown(state.boot_id).c_str(), static_cast<unsigned long long>(state.seq), state.models.size(),
              state.draining.size(), tiers.c_str());
}

void print_event(const wire::Event& event, bool json) {
  if (!json) {
    const std::string model = event.data.model.empty() ? "" : "  " + shown(event.data.model);
    std::printf("%s  %s%s%s\n", clock_text(event.time).c_str(), shown(event.type).c_str(), model.c_str(),
                details(event.data).c_str());
    return;
  }
  Json line = to_json(event);
  Json data = Json::object();  // as on the wire: what is empty or 0 is left out
  wire::EventData::fields(event.data, [&]<class T>(const char* name, const T& value) {
    if constexpr (std::is_same_v<T, std::vector<wire::ModelBlock>>) {
      if (!value.empty()) data[name] = to_json(value);
    } else {
      if (value != T()) data[name] = value;
    }
  });
  line["data"] = std::move(data);
  print_line(line);
}

// Ctrl-C and SIGTERM end the program at once, also while a broker does not answer: all that was printed is out.
class EndAtSignal {
 public:
  EndAtSignal() {
    struct sigaction action {};
    action.sa_handler = [](int) { ::_exit(kExitOk); };
    for (const int number : {SIGINT, SIGTERM}) {
      ::sigaddset(&numbers_, number);
      ::sigaction(number, &action, nullptr);
    }
    ::pthread_sigmask(SIG_UNBLOCK, &numbers_, nullptr);
  }

  // Not in the midst of a line, though.
  class Later {
   public:
    explicit Later(const EndAtSignal& end) { ::pthread_sigmask(SIG_BLOCK, &end.numbers_, &before_); }
    ~Later() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
    Later(const Later&) = delete;
    Later& operator=(const Later&) = delete;

   private:
    sigset_t before_{};
  };

 private:
  sigset_t numbers_{};
};

Result<void> events(const Common& common, const Arguments& arguments) {
  MODELBROKER_TRY(check_types(arguments.types));
  const std::unique_ptr<Os> os = make_plain_os();
  const EndAtSignal end;
  MODELBROKER_ASSIGN(EventStream stream, EventStream::open(*os, {.endpoint = common.endpoint}));
  while (true) {
    MODELBROKER_ASSIGN(const auto item, stream.next(client::Timeout{0}));
    if (!item) continue;
    const EndAtSignal::Later later(end);
    if (const auto* snapshot = std::get_if<EventStream::Snapshot>(&*item)) {
      print_snapshot(*snapshot, common.json);
    } else if (const auto& event = std::get<wire::Event>(*item);
               arguments.types.empty() || std::ranges::any_of(arguments.types, [&](const std::string& pattern) {
                 return matches(pattern, event.type);
               })) {
      print_event(event, common.json);
    }
    if (std::fflush(stdout) != 0) return fail_errno(errno, "writing the output");
    if (arguments.snapshot_only) return {};
  }
}

}  // namespace

void add_events_command(CLI::App& app, Common& common, Action& action) {
  auto* const command = add_verb(app, "events", "print events as they happen, one per line, until Ctrl-C",
                                 "  modelbroker events\n  modelbroker events --types 'model.*' --json");
  auto arguments = std::make_shared<Arguments>();
  command
      ->add_option("--types", arguments->types,
                   "only these types, e.g. 'model.*,lease.granted' (snapshots are always printed)")
      ->delimiter(',')
      ->allow_extra_args(false);
  command->add_flag("--snapshot", arguments->snapshot_only, "print the current state and end");
  add_client_flags(*command, common);
  command->callback([&common, &action, arguments] {
    action = [&common, arguments] {
      const Result<void> done = events(common, *arguments);
      return done ? kExitOk : report(done.error(), common.json);
    };
  });
}

}  // namespace modelbroker::cli
