// `modelbroker stop`: the clean stop of a broker, as by SIGTERM.
//
// The kernel says who serves the socket (a pidfd where it gives one), so the signal reaches that process and no other,
// and it is the kernel too that says whether we may. From a host this works into its containers.
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdio>

#include "broker/cli/ask.h"
#include "shm/fd.h"

namespace modelbroker::cli {
namespace {

using client::Connection;

// It waits two seconds for reads that hang; the rest is the freeing of its memory.
constexpr client::Timeout kPatience{60'000};

// Of the process that listens at `socket`'s other end. An invalid one where the kernel gives none.
Fd pidfd_of(int socket, pid_t pid) {
  constexpr int kPeerPidfd = 77;  // SO_PEERPIDFD, Linux 6.5: never of another process that got the number since
  int pidfd = -1;
  socklen_t size = sizeof pidfd;
  if (::getsockopt(socket, SOL_SOCKET, kPeerPidfd, &pidfd, &size) == 0) return Fd(pidfd);
  return Fd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
}

int send_signal(int pidfd, int number) {
  return static_cast<int>(::syscall(SYS_pidfd_send_signal, pidfd, number, nullptr, 0));
}

// Where the process is not one of ours to see.
tl::unexpected<Error> not_visible(const wire::Endpoint& endpoint) {
  return fail(ErrorCode::kFailedPrecondition,
              "the broker at " + endpoint.broker() +
                  " runs in another pid namespace, where this one cannot stop it: run 'modelbroker stop' there, or "
                  "stop its container");
}

Result<void> stop(const Common& common) {
  Os& os = plain_os();
  auto connection = Connection::connect(os, {.endpoint = common.endpoint, .timeout = client::Timeout{200}});
  if (!connection) {
    if (connection.error().code != ErrorCode::kUnavailable) return tl::unexpected(connection.error());
    MODELBROKER_ASSIGN(const auto places, wire::endpoints_to_try(common.endpoint));
    std::string where;
    for (const auto& place : places) where += (where.empty() ? "" : " or ") + place.broker();
    return fail(ErrorCode::kUnavailable, "no broker answers at " + where + ": there is none to stop");
  }
  const wire::Endpoint& endpoint = connection->endpoint();
  const int socket = connection->descriptor();
  const auto peer = os.peer_credentials(socket);
  if (!peer) return fail_errno(peer.error().number, "asking who serves " + endpoint.broker());
  if (peer->pid <= 0) return not_visible(endpoint);
  const Fd pidfd = pidfd_of(socket, peer->pid);
  const int sent = pidfd ? send_signal(pidfd.get(), SIGTERM) : ::kill(peer->pid, SIGTERM);
  if (sent != 0 && errno == EPERM) {
    return fail(ErrorCode::kPermissionDenied, "only the broker's user (uid " + std::to_string(peer->uid) +
                                                  ") and root may stop the broker at " + endpoint.broker());
  }
  if (sent != 0 && errno != ESRCH) return fail_errno(errno, "stopping pid " + std::to_string(peer->pid));
  // Without a pidfd, the end of its connections must do: the blocks may go a moment later.
  pollfd end{pidfd ? pidfd.get() : socket, static_cast<short>(pidfd ? POLLIN : POLLRDHUP), 0};
  const client::Deadline deadline(kPatience);
  while (::poll(&end, 1, static_cast<int>(deadline.left(kPatience).count())) <= 0) {
    if (!deadline.passed()) continue;
    return fail(ErrorCode::kDeadlineExceeded, "the broker (pid " + std::to_string(peer->pid) +
                                                  ") was told to stop and has not ended within 60 s: see its log");
  }
  if (common.json) {
    print(Json{{"pid", peer->pid}, {"endpoint", endpoint.broker()}});
  } else {
    std::printf("stopped the broker at %s (pid %d)\n", endpoint.broker().c_str(), static_cast<int>(peer->pid));
  }
  return {};
}

}  // namespace

void add_stop_command(CLI::App& app, Common& common, Action& action) {
  CLI::App* const command =
      add_verb(app, "stop", "stop the broker cleanly, and return when it has ended",
               "  modelbroker stop\n  modelbroker stop --endpoint ipc:///run/modelbroker/broker.sock");
  add_client_flags(*command, common);
  command->footer(
      "As SIGTERM: its memory is freed, unless it was started with --on-stop keep. Workers keep what they have "
      "mapped.\n"
      "A broker under --supervise or systemd stays stopped. For the broker's user and root.\n" +
      command->get_footer());
  command->callback([&common, &action] {
    action = [&common] {
      const Result<void> done = stop(common);
      return done ? kExitOk : report(done.error(), common.json);
    };
  });
}

}  // namespace modelbroker::cli
