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

#include "broker/api/cache_service.h"
#include "broker/api/lease_service.h"
#include "broker/api/model_service.h"
#include "broker/api/session_service.h"
#include "broker/models/load_notes.h"
#include "broker/models/ram_tier.h"
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
    books_ = std::make_unique<Books>(*os_, clock_, config, Rights(os_->uid(), std::nullopt), std::move(*directory_));
    books_->budget.set_limit(64 * kMiB);
    loop_ = value(Loop::create(*os_, clock_));
    jobs_ = std::make_unique<Jobs>(*loop_, 2);
    const std::string state = folder_ / "state.db";
    keeper_ = std::make_unique<StateKeeper>(*books_, *loop_, state, std::move(value(StateDb::open(state)).db),
                                            [] { return Result<void>(); });
    reaper_ = std::make_unique<Reaper>(*books_, *loop_, *jobs_, *keeper_, events_);
    withdrawal_ = std::make_unique<Withdrawal>(*books_, *reaper_, events_);
    ram_ = std::make_unique<RamTier>(*books_, *reaper_, *withdrawal_);
    admission_ = std::make_unique<Admission>(*ram_, *loop_);
    expiry_ = std::make_unique<Expiry>(*ram_, *loop_);
    notes_ = std::make_unique<LoadNotes>(*os_, config.run_directory);
    ASSERT_TRUE(notes_->open());
    scrubber_ = std::make_unique<Scrubber>(*books_, *loop_, *withdrawal_, events_);
    block_loads_ = std::make_unique<BlockLoads>(*books_, *loop_, *reaper_, *admission_, *scrubber_, events_, *notes_);
    loading_ =
        std::make_unique<Loading>(*books_, *loop_, *block_loads_, *reaper_, *admission_, *expiry_, events_, *notes_);
    books_->models.observe({keeper_.get(), &events_, {}});
    settled_ = std::make_unique<Settled>(*loop_);
    leases_ = std::make_unique<LeaseService>(*books_, events_, *loading_, *scrubber_, *reaper_, *admission_, *expiry_);
    models_ = std::make_unique<ModelService>(*books_, *loop_, *settled_, *loading_, *keeper_, *reaper_, *withdrawal_);
    cache_ = std::make_unique<CacheService>(*books_, events_, *settled_, *loading_, *scrubber_);
  }

  // A session of our own uid, or of another user.
  Session& session(uid_t uid) {
    return *value(books_->sessions.open({uid, 1, {}}, "token" + std::to_string(++sessions_), clock_.now()));
  }
  Session& session() { return session(os_->uid()); }

  // A resident model, given by our own uid.
  ModelEntry& add_model(const std::string& name) {
    auto made = make_block(*os_, books_->directory, {.generation = books_->new_generation(), .name = name});
    RamBlock block(value(std::move(made)));
    block.sources.push_back({"/models/" + name, {}});
    block.loader = block.source_uid = os_->uid();
    RamBlock& added = books_->blocks.add(std::move(block));
    const GivenName given{.loader = os_->uid(), .path = "/models/" + name};
    books_->models.observe({});
    books_->models.apply(
        {.why = Why::kAdopted,
         .edits = {{.id = added.id(), .parts = {&added}, .names = {{name, given}}, .path = given.path}}});
    books_->models.observe({keeper_.get(), &events_, {}});
    return *books_->models.by_name(name);
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
  std::unique_ptr<Books> books_;
  std::unique_ptr<Loop> loop_;
  std::unique_ptr<Jobs> jobs_;
  std::unique_ptr<StateKeeper> keeper_;
  std::unique_ptr<Reaper> reaper_;
  std::unique_ptr<Withdrawal> withdrawal_;
  std::unique_ptr<RamTier> ram_;
  std::unique_ptr<Admission> admission_;
  std::unique_ptr<Expiry> expiry_;
  std::unique_ptr<LoadNotes> notes_;
  std::unique_ptr<Scrubber> scrubber_;
  std::unique_ptr<BlockLoads> block_loads_;
  std::unique_ptr<Loading> loading_;
  std::unique_ptr<Settled> settled_;
  std::unique_ptr<LeaseService> leases_;
  std::unique_ptr<ModelService> models_;
  std::unique_ptr<CacheService> cache_;
  int sessions_ = 0;
};

}  // namespace modelbroker::testing
