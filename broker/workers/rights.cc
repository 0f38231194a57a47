#include "broker/workers/rights.h"

#include <algorithm>

namespace modelbroker {

bool Rights::enter(const Peer& peer) const noexcept {
  return everything(peer.uid) || (group_ && std::ranges::find(peer.groups, *group_) != peer.groups.end());
}

Error Rights::not_served(uid_t uid) const {
  const std::string whom = group_ ? " and the members of group " + std::to_string(*group_) : " alone";
  return {ErrorCode::kPermissionDenied,
          "uid " + std::to_string(uid) + " is not served: this broker serves uid " + std::to_string(own_) + whom};
}

Error Rights::not_attachable(const std::string& model) {
  return {ErrorCode::kPermissionDenied,
          "'" + model +
              "' is its owner's alone: the group cannot read its file; its owner may let the group "
              "read it, and load it again"};
}

Error Rights::not_manageable(const std::string& model, uid_t loader) {
  return {ErrorCode::kPermissionDenied, "'" + model + "' was loaded by uid " + std::to_string(loader) +
                                            ": only that user, the broker's and root may unload, pin or change it"};
}

}  // namespace modelbroker
