#include "broker/api/dispatcher.h"

#include "modelbroker_version.h"
#include "shm/text.h"

namespace modelbroker {

void Dispatcher::dispatch(Session& session, const wire::Request& request, std::shared_ptr<Call> call) const {
  const auto handler = handlers_.find(request.type());
  if (handler != handlers_.end()) return handler->second(session, request, std::move(call));
  call->finish(fail(ErrorCode::kUnimplemented,
                    "'" + printable(request.type(), 64) + "' is not served by modelbroker " + kVersion));
}

}  // namespace modelbroker
