// Call: one request on its way to its answer. Who answers does not know through which door it came.
//
// A door derives from Call and encodes the answer. A call is answered exactly once: the first answer counts, and a door
// whose call ends without one answers `internal` itself. Threads: the loop's only.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include "broker/base/clock.h"
#include "shm/error.h"
#include "wire/messages.h"

namespace modelbroker {

class Call {
 public:
  virtual ~Call() = default;
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  void finish(const Result<wire::AnyReply>& answer) {
    if (!std::exchange(answered_, true)) send(answer);
  }
  // Nobody waits any more: it was answered, or its deadline has passed.
  [[nodiscard]] bool answered() const noexcept { return answered_; }
  // Until when the asker waits, if it said so.
  [[nodiscard]] std::optional<TimePoint> deadline() const noexcept { return deadline_; }
  // It changes something: a door where requests are repeated remembers the answer, so that nothing is done twice.
  void changes_something() noexcept { is_change_ = true; }
  // `give_up` is called once the deadline has passed without an answer.
  void on_late(std::function<void()> give_up) { give_up_ = std::move(give_up); }

 protected:
  explicit Call(std::optional<TimePoint> deadline = std::nullopt) : deadline_(deadline) {}
  virtual void send(const Result<wire::AnyReply>& answer) = 0;
  [[nodiscard]] bool is_change() const noexcept { return is_change_; }
  // For the door: the deadline has passed.
  void late(const Error& error) {
    finish(tl::unexpected(error));
    if (give_up_) give_up_();
  }

 private:
  std::optional<TimePoint> deadline_;
  std::function<void()> give_up_;
  bool answered_ = false;
  bool is_change_ = false;
};

// The typed side of a call: what handlers get. Copies share the one answer.
template <class M>
class Reply {
 public:
  explicit Reply(std::shared_ptr<Call> call) : call_(std::move(call)) {}
  void ok(M message) const { call_->finish(wire::AnyReply(std::move(message))); }
  void error(const Error& error) const { call_->finish(tl::unexpected(error)); }
  // As the call's.
  [[nodiscard]] bool answered() const noexcept { return call_->answered(); }
  [[nodiscard]] std::optional<TimePoint> deadline() const noexcept { return call_->deadline(); }
  void on_late(std::function<void()> give_up) const { call_->on_late(std::move(give_up)); }

 private:
  std::shared_ptr<Call> call_;
};

}  // namespace modelbroker
