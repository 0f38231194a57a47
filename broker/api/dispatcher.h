// Dispatcher: which handler a request goes to, by its type.
//
// Handlers get typed messages; what cannot be decoded never reaches them. Threads: the loop's only.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "broker/api/call.h"
#include "broker/workers/sessions.h"
#include "wire/frame.h"

namespace modelbroker {

class Dispatcher {
 public:
  // Whether a repeat of a request may be served again, or must get the answer of the first.
  enum class Kind { kLook, kChange };
  // Requests of this type go to a method of a service, which outlives this. `session`: who asks.
  template <class Service, class M, class R>
  void on(std::string_view type, Kind kind, Service& service,
          void (Service::*handler)(Session&, const M&, const Reply<R>&)) {
    handlers_.emplace(
        type, [&service, handler, kind](Session& session, const wire::Request& request, std::shared_ptr<Call> call) {
          if (kind == Kind::kChange) call->changes_something();
          const Reply<R> reply(std::move(call));
          const auto data = request.data<M>();
          if (!data) return reply.error(data.error());
          (service.*handler)(session, *data, reply);
        });
  }
  // Answers `unimplemented` where no handler is for it.
  void dispatch(Session& session, const wire::Request& request, std::shared_ptr<Call> call) const;

 private:
  using Handler = std::function<void(Session&, const wire::Request&, std::shared_ptr<Call>)>;
  std::map<std::string, Handler, std::less<>> handlers_;
};

}  // namespace modelbroker
