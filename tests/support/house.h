// House: the rooms below the doors, with a block directory and a state database of their own, and no socket.
//
// A test calls a service with a FakeCall and turns the loop until it is answered. Threads: the test's own.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "broker/server/rooms.h"
#include "tests/support/block_fixture.h"
#include "tests/support/fake_events.h"

namespace modelbroker::testing {

// Keeps its answer.
class FakeCall final : public Call {
 public:
  explicit FakeCall(std::optional<TimePoint> deadline = std::nullopt) : Call(deadline) {}
  void pass_deadline() { late({ErrorCode::kDeadlineExceeded, "late"}); }

  std::vector<Result<wire::AnyReply>> answers;
  using Call::is_change;

 private:
  void send(const Result<wire::AnyReply>& answer) override { answers.push_back(answer); }
};

class HouseFixture : public BlockFixture {
 protected:
  void SetUp() override {
    BlockFixture::SetUp();
    Config config;
    config.run_directory = folder_.path();
    config.ram_directory = folder_.path();
    facts_.reset(new Facts{.env = Environment(*os_, clock_, config),
                           .workers = Workers(Rights(os_->uid(), std::nullopt)),
                           .ram = RamStore(*os_, std::move(*directory_))});
    facts_->ram.budget.set_limit(64 * kMiB);
    loop_ = value(Loop::create(*os_, clock_));
    notes_ = std::make_unique<LoadNotes>(*os_, config.run_directory);
    ASSERT_TRUE(notes_->open());
    const std::string state = folder_ / "state.db";
    rooms_ = std::make_unique<Rooms>(
        *facts_, *loop_, events_, *notes_,
        Rooms::State{state, std::move(value(StateDb::open(state)).db), [] { return Result<void>(); }});
  }

  // A session of our own uid, or of another user.
  Session& session(uid_t uid) {
    return *value(facts_->workers.sessions.open({uid, 1, {}}, "token" + std::to_string(++sessions_), clock_.now()));
  }
  Session& session() { return session(os_->uid()); }

  // A resident model, given by our own uid.
  ModelEntry& add_model(const std::string& name) {
    auto made = make_block(*os_, facts_->ram.directory, {.generation = facts_->ram.new_generation(*os_), .name = name});
    RamBlock block(value(std::move(made)));
    block.sources.push_back({"/models/" + name, {}});
    block.loader = block.source_uid = os_->uid();
    RamBlock& added = facts_->ram.blocks.add(std::move(block));
    const GivenName given{.loader = os_->uid(), .path = "/models/" + name};
    const Registry::Observers observers = facts_->models.observe({});
    facts_->models.apply(
        {.why = Why::kAdopted,
         .edits = {{.id = added.id(), .parts = {&added}, .names = {{name, given}}, .path = given.path}}});
    facts_->models.observe(observers);
    return *facts_->models.by_name(name);
  }

  // The answer to a request, after the loop has turned until there is one.
  template <class R, class Service, class M>
  Result<R> ask(Service& service, void (Service::*handler)(Session&, const M&, const Reply<R>&), Session& asker,
                const M& data) {
    const auto call = std::make_shared<FakeCall>();
    (service.*handler)(asker, data, Reply<R>(call));
    turn_until([&] { return call->answered(); });
    if (call->answers.size() != 1) throw std::runtime_error("not answered once");
    if (!call->answers.front()) return tl::unexpected(call->answers.front().error());
    return std::get<R>(*call->answers.front());
  }

  template <class Condition>
  void turn_until(Condition condition) {
    while (!condition()) {
      loop_->after(std::chrono::milliseconds(1), [] {});  // it does not wait for ever
      if (const auto turned = loop_->turn(); !turned) throw std::runtime_error(turned.error().message);
    }
  }

  template <class T>
  static T value(Result<T> result) {
    if (!result) throw std::runtime_error(result.error().message);
    return std::move(*result);
  }

  SystemClock clock_;
  FakeEvents events_;
  std::unique_ptr<Facts> facts_;
  std::unique_ptr<Loop> loop_;
  std::unique_ptr<LoadNotes> notes_;
  std::unique_ptr<Rooms> rooms_;
  int sessions_ = 0;
};

}  // namespace modelbroker::testing
