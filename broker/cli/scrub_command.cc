// `modelbroker scrub`: has resident blocks checked for damage, now.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <thread>

#include "broker/base/sizes.h"
#include "broker/cli/commands.h"
#include "broker/cli/json.h"
#include "broker/cli/output.h"
#include "cpp_client/connection.h"
#include "cpp_client/events.h"
#include "cpp_client/paths.h"
#include "shm/text.h"

namespace modelbroker::cli {
namespace {

constexpr client::Timeout kNoEnd{0};

std::string shown(const std::string& text) { return printable(text, 4096); }

void watch_progress(Os& os, const Common& common, const Fd& done) {
  ProgressLine line;
  if (!line.visible()) return;
  auto stream = client::EventStream::open(os, {.endpoint = common.endpoint});
  while (stream) {
    const auto item = stream->next(kNoEnd, done.get());
    if (!item || !*item) return;
    const auto* const event = std::get_if<wire::Event>(&**item);
    if (event == nullptr || event->type != "model.scrubbing") continue;
    const wire::EventData& data = event->data;
    line.show("checking " + shown(data.model), data.read_bytes, data.total_bytes);
  }
}

Result<wire::ScrubReply> ask(client::Connection& connection, const std::vector<std::string>& models) {
  if (models.empty()) return connection.request<wire::ScrubReply>("cache.scrub", wire::Scrub{}, kNoEnd);
  wire::ScrubReply all;
  for (const std::string& model : models) {
    const wire::Scrub request{client::name_or_path(model)};
    MODELBROKER_ASSIGN(const auto found, connection.request<wire::ScrubReply>("cache.scrub", request, kNoEnd));
    all.bytes += found.bytes;
    all.damaged += found.damaged;
    std::ranges::copy(found.models, std::back_inserter(all.models));
  }
  return all;
}

void print(const wire::ScrubReply& found) {
  for (const wire::ScrubbedModel& model : found.models) {
    std::string text = shown(model.model) + ": " + model.outcome + " (" + format_size(model.bytes) + " checked";
    if (!model.reason.empty()) text += ", " + shown(model.reason);
    if (model.outcome == "damaged") text += ", offset " + std::to_string(model.offset);
    std::printf("%s)\n", text.c_str());
  }
}

Result<void> scrub(const Common& common, const std::vector<std::string>& models) {
  const std::unique_ptr<Os> os = make_plain_os();
  MODELBROKER_ASSIGN(auto connection, client::Connection::connect(*os, {.endpoint = common.endpoint}));
  const auto done = os->event_fd();
  if (!done) return fail_errno(done.error().number, "waiting for the check");
  std::thread progress = optional_thread([&] { watch_progress(*os, common, *done); });
  const auto found = ask(connection, models);
  os->event_fd_signal(done->get());
  if (progress.joinable()) progress.join();
  if (!found) return tl::unexpected(found.error());
  if (common.json) {
    std::printf("%s\n", to_json(*found).dump(2, ' ', false, Json::error_handler_t::replace).c_str());
  } else {
    print(*found);
  }
  if (found->damaged == 0) return {};
  return fail(ErrorCode::kDataLoss,
              std::to_string(found->damaged) + (found->damaged == 1 ? " block was" : " blocks were") +
                  " damaged and withdrawn: workers holding one should re-attach; test this machine's memory",
              {{"damaged", found->damaged}});
}

}  // namespace

void add_scrub_command(CLI::App& app, Common& common, Action& action) {
  auto* const command = add_verb(app, "scrub", "verify resident weights against their checksums now",
                                 "  modelbroker scrub\n  modelbroker scrub m --json");
  auto models = std::make_shared<std::vector<std::string>>();
  command->add_option("MODEL", *models, "names, aliases or paths (default: all)");
  add_client_flags(*command, common);
  command->footer(
      "A damaged block is withdrawn; the next attach loads its file again.\n"
      "Exit status 17: something was damaged.\n" +
      command->get_footer());
  command->callback([&common, &action, models] {
    action = [&common, models] {
      const Result<void> done = scrub(common, *models);
      return done ? kExitOk : report(done.error(), common.json);
    };
  });
}

}  // namespace modelbroker::cli
