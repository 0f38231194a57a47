// Workers: who talks to the broker, what each may do, and what each holds. Threads: the loop's only.
#pragma once

#include "broker/workers/leases.h"
#include "broker/workers/rights.h"
#include "broker/workers/sessions.h"

namespace modelbroker {

struct Workers {
  explicit Workers(const Rights& rights_) : rights(rights_) {}

  const Rights rights;
  Sessions sessions;
  LeaseBook leases;
};

}  // namespace modelbroker
