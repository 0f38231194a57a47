// Keeps what was published, as "type model".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "broker/base/event_sink.h"

namespace modelbroker::testing {

class FakeEvents final : public EventSink {
 public:
  void publish(std::string_view type, const wire::EventData& data) override {
    published.push_back(std::string(type) + (data.model.empty() ? "" : " " + data.model));
    told.push_back(data);
  }
  void take_subscriptions() override {}
  [[nodiscard]] std::uint64_t last_seq() const noexcept override { return published.size(); }
  std::vector<std::string> published;
  std::vector<wire::EventData> told;  // with each
};

}  // namespace modelbroker::testing
