#include "cpp_client/find_broker.h"

namespace modelbroker::client {

Error no_broker(const std::vector<wire::Endpoint>& tried) {
  std::string where;
  for (const auto& endpoint : tried) where += (where.empty() ? "" : " and ") + endpoint.broker();
  return {ErrorCode::kUnavailable,
          "no broker answers at " + where +
              ": start one with 'modelbroker serve', or set MODELBROKER_ENDPOINT or --endpoint"};
}

}  // namespace modelbroker::client
