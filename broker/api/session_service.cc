#include "broker/api/session_service.h"

#include "modelbroker_version.h"
#include "shm/block_format.h"

namespace modelbroker {

void SessionService::hello(Session& session, const wire::Empty&, const Reply<wire::SessionHelloReply>& reply) {
  wire::SessionHelloReply hello;
  hello.version = kVersion;
  hello.boot_id = to_hex(env_.boot_id);
  hello.instance = env_.config.instance;
  hello.fds = endpoint_.fds();
  hello.events = endpoint_.events_path();
  hello.ram_directory = env_.config.ram_directory;
  hello.uid = session.peer.uid;
  hello.pid = static_cast<std::uint64_t>(session.peer.pid);
  reply.ok(hello);
}

void SessionService::ping(Session&, const wire::Empty&, const Reply<wire::SessionPingReply>& reply) {
  reply.ok({to_hex(env_.boot_id), events_.last_seq()});
}

void SessionService::bye(Session& session, const wire::Empty&, const Reply<wire::SessionByeReply>& reply) {
  const LeaseBook::Ended ended = leases_.end_all(session);
  reply.ok({ended.leases});
  leases_.let_go(ended.blocks);
  end_(session);
}

}  // namespace modelbroker
