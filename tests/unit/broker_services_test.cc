// What requests are answered, without a socket: services by fake calls.
#include <gtest/gtest.h>

#include "broker/api/dispatcher.h"
#include "broker/api/session_service.h"
#include "tests/support/house.h"

namespace modelbroker {
namespace {

using testing::FakeCall;

// ---- calls and the dispatcher

TEST(CallTest, TheFirstAnswerCounts) {
  const auto call = std::make_shared<FakeCall>();
  const Reply<wire::DetachReply> reply(call);
  EXPECT_FALSE(reply.answered());
  reply.ok({true});
  reply.error({ErrorCode::kInternal, "too late"});
  EXPECT_TRUE(reply.answered());
  ASSERT_EQ(call->answers.size(), 1U);
  EXPECT_TRUE(std::get<wire::DetachReply>(*call->answers.front()).released);
}

TEST(CallTest, ADeadlineThatPassesAnswersAndGivesUp) {
  const auto call = std::make_shared<FakeCall>();
  const Reply<wire::DetachReply> reply(call);
  int given_up = 0;
  reply.on_late([&given_up] { ++given_up; });
  call->pass_deadline();
  reply.ok({true});
  ASSERT_EQ(call->answers.size(), 1U);
  EXPECT_EQ(call->answers.front().error().code, ErrorCode::kDeadlineExceeded);
  EXPECT_EQ(given_up, 1);
}

struct Echo {
  void detach(Session& /*session*/, const wire::Detach& data, const Reply<wire::DetachReply>& reply) {
    leases.push_back(data.lease);
    reply.ok({data.lease == 7});
  }
  std::vector<std::uint64_t> leases;
};

wire::Request request(const std::string& type, std::uint64_t lease) {
  auto decoded = wire::Request::decode(wire::encode_request({"id", type}, wire::Detach{lease}));
  if (!decoded) throw std::runtime_error(decoded.error().message);
  return std::move(*decoded);
}

TEST(DispatcherTest, ARequestGoesToTheHandlerOfItsType) {
  Echo echo;
  Dispatcher dispatcher;
  dispatcher.on("look", Dispatcher::Kind::kLook, echo, &Echo::detach);
  dispatcher.on("change", Dispatcher::Kind::kChange, echo, &Echo::detach);
  Session session;
  for (const auto& [type, is_change] : {std::pair("look", false), std::pair("change", true)}) {
    const auto call = std::make_shared<FakeCall>();
    dispatcher.dispatch(session, request(type, 7), call);
    ASSERT_EQ(call->answers.size(), 1U) << type;
    EXPECT_TRUE(std::get<wire::DetachReply>(*call->answers.front()).released) << type;
    EXPECT_EQ(call->is_change(), is_change) << type;
  }
  EXPECT_EQ(echo.leases, (std::vector<std::uint64_t>{7, 7}));
}

TEST(DispatcherTest, WhatItCannotServeNeverReachesAHandler) {
  Echo echo;
  Dispatcher dispatcher;
  dispatcher.on("known", Dispatcher::Kind::kLook, echo, &Echo::detach);
  Session session;
  const auto unknown = std::make_shared<FakeCall>();
  dispatcher.dispatch(session, request("unknown", 7), unknown);
  ASSERT_EQ(unknown->answers.size(), 1U);
  EXPECT_EQ(unknown->answers.front().error().code, ErrorCode::kUnimplemented);
  const auto undecodable = std::make_shared<FakeCall>();
  auto bad = wire::Request::decode(wire::encode_request({"id", "known"}, wire::ModelName{"no lease"}));
  ASSERT_TRUE(bad);
  dispatcher.dispatch(session, *bad, undecodable);
  ASSERT_EQ(undecodable->answers.size(), 1U);
  EXPECT_EQ(undecodable->answers.front().error().code, ErrorCode::kInvalidArgument);
  EXPECT_TRUE(echo.leases.empty());
}

// ---- leases

class ServicesTest : public testing::HouseFixture {
 protected:
  static wire::Attach attach_of(const std::string& model, std::uint64_t lease = 0) {
    wire::Attach attach;
    attach.model = model;
    attach.lease = lease;
    return attach;
  }
  Result<wire::AttachReply> attach(Session& asker, const wire::Attach& data) {
    return ask<wire::AttachReply>(rooms_->leases, &LeaseService::attach, asker, data);
  }
  Result<wire::DetachReply> detach(Session& asker, std::uint64_t lease) {
    return ask<wire::DetachReply>(rooms_->leases, &LeaseService::detach, asker, wire::Detach{lease});
  }
};

TEST_F(ServicesTest, ALeaseBeginsWithItsAttachAndEndsWithItsDetach) {
  const std::string block = add_model("m").id;
  Session& asker = session();
  const auto attached = attach(asker, attach_of("m", 5));
  ASSERT_TRUE(attached) << attached.error().message;
  EXPECT_EQ(attached->lease, 5U);
  EXPECT_EQ(attached->outcome, "resident");
  ASSERT_EQ(attached->blocks.size(), 1U);
  EXPECT_EQ(attached->blocks.front().block, block);
  EXPECT_EQ(facts_->workers.leases.count(block), 1U);
  EXPECT_TRUE(detach(asker, 5).value().released);
  EXPECT_FALSE(detach(asker, 5).value().released);
  EXPECT_EQ(facts_->workers.leases.count(block), 0U);
  EXPECT_EQ(events_.published, (std::vector<std::string>{"lease.granted m", "lease.released m"}));
}

TEST_F(ServicesTest, ALeasesNumberIsUsedOnce) {
  const std::string block = add_model("m").id;
  Session& asker = session();
  ASSERT_TRUE(attach(asker, attach_of("m", 5)));
  EXPECT_EQ(attach(asker, attach_of("m", 5)).error().code, ErrorCode::kAlreadyExists);
  ASSERT_TRUE(detach(asker, 9));  // before its attach
  EXPECT_EQ(attach(asker, attach_of("m", 9)).error().code, ErrorCode::kAlreadyExists);
  EXPECT_EQ(attach(asker, attach_of("m")).value().lease, 10U);
  EXPECT_TRUE(attach(session(), attach_of("m", 5)));  // numbers belong to their session
  EXPECT_EQ(facts_->workers.leases.count(block), 3U);
}

TEST_F(ServicesTest, AnAttachThatCannotBeServedSaysWhy) {
  add_model("m");
  Session& asker = session();
  wire::Attach of_a_device = attach_of("m");
  of_a_device.device = "cuda:0";
  wire::Attach of_a_component = attach_of("m");
  of_a_component.component = "vae";
  EXPECT_EQ(attach(asker, of_a_device).error().code, ErrorCode::kUnimplemented);
  EXPECT_EQ(attach(asker, of_a_component).error().code, ErrorCode::kUnimplemented);
  EXPECT_EQ(attach(asker, attach_of("")).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(attach(asker, attach_of("other")).error().code, ErrorCode::kNotFound);
  EXPECT_EQ(attach(asker, attach_of("m", (1ULL << 62U) + 1)).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(facts_->workers.leases.total(), 0U);
}

TEST_F(ServicesTest, RestatedLeasesAreThoseWhoseBlocksAreHere) {
  const std::string block = add_model("m").id;
  Session& asker = session();
  wire::Restate restate;
  restate.leases = {{3, "m", {block}}, {4, "gone", {"absent"}}, {5, "none", {}}};
  const auto answer = ask<wire::RestateReply>(rooms_->leases, &LeaseService::restate, asker, restate);
  ASSERT_TRUE(answer) << answer.error().message;
  EXPECT_EQ(answer->restated, (std::vector<std::uint64_t>{3}));
  EXPECT_EQ(answer->lost, (std::vector<std::uint64_t>{4, 5}));
  EXPECT_EQ(facts_->workers.leases.count(block), 1U);
}

// ---- models

TEST_F(ServicesTest, APinIsItsLoadersAndIsWritten) {
  const ModelEntry& model = add_model("m");
  const wire::ModelName name{"m"};
  const auto stranger = ask<wire::PinReply>(rooms_->model_service, &ModelService::pin, session(os_->uid() + 1), name);
  EXPECT_EQ(stranger.error().code, ErrorCode::kPermissionDenied);
  EXPECT_FALSE(model.pinned);
  Session& asker = session();
  EXPECT_TRUE((ask<wire::PinReply>(rooms_->model_service, &ModelService::pin, asker, name)).value().pinned);
  EXPECT_TRUE(model.pinned);
  EXPECT_FALSE((ask<wire::PinReply>(rooms_->model_service, &ModelService::unpin, asker, name)).value().pinned);
  EXPECT_EQ(events_.published, (std::vector<std::string>{"model.pinned m", "model.unpinned m"}));
}

TEST_F(ServicesTest, AnUnloadFreesWhatNobodyHasAndDrainsTheRest) {
  add_model("free");
  const std::string held = add_model("held").id;
  Session& asker = session();
  const std::uint64_t lease = attach(asker, attach_of("held")).value().lease;
  const auto unload = [&](const std::string& model) {
    wire::UnloadModel data;
    data.model = model;
    return ask<wire::UnloadModelReply>(rooms_->model_service, &ModelService::unload, asker, data);
  };
  EXPECT_GT(unload("free").value().freed, 0U);
  EXPECT_GT(unload("held").value().draining, 0U);
  EXPECT_EQ(unload("held").error().code, ErrorCode::kNotFound);
  const auto list = ask<wire::ModelListReply>(rooms_->model_service, &ModelService::list, asker, wire::ModelList{});
  ASSERT_EQ(list.value().draining.size(), 1U);
  EXPECT_EQ(list->draining.front().block, held);
  ASSERT_TRUE(detach(asker, lease));
  turn_until([&] { return facts_->ram.blocks.find(held) == nullptr; });
}

TEST_F(ServicesTest, AnEvictedModelIsRememberedShownPinnedAndUnloaded) {
  add_model("m");
  ASSERT_TRUE(rooms_->withdrawal.evict(*facts_->models.by_name("m"), "a test"));
  Session& asker = session();
  const auto states = [&](bool all) {
    std::vector<std::string> list;
    const auto reply =
        ask<wire::ModelListReply>(rooms_->model_service, &ModelService::list, asker, wire::ModelList{all});
    for (const wire::ModelInfo& model : reply.value().models) list.push_back(model.name + " " + model.state);
    return list;
  };
  EXPECT_EQ(states(false), std::vector<std::string>{});
  EXPECT_EQ(states(true), std::vector<std::string>{"m remembered"});
  const wire::ModelName name{"m"};
  Session& stranger = session(os_->uid() + 1);
  const auto pin = [&](Session& who) {
    return ask<wire::PinReply>(rooms_->model_service, &ModelService::pin, who, name);
  };
  EXPECT_EQ(pin(stranger).error().code, ErrorCode::kPermissionDenied);
  EXPECT_TRUE(pin(asker).value().pinned);
  const auto shown = [&](Session& who) {
    return ask<wire::ModelGetReply>(rooms_->model_service, &ModelService::get, who, name).value().model;
  };
  EXPECT_TRUE(shown(asker).pinned);
  EXPECT_EQ(shown(asker).path, "/models/m");
  EXPECT_EQ(shown(stranger).path, "");
  wire::UnloadModel unload;
  unload.model = "m";
  EXPECT_TRUE(ask<wire::UnloadModelReply>(rooms_->model_service, &ModelService::unload, asker, unload));
  EXPECT_EQ(states(true), std::vector<std::string>{});
}

TEST_F(ServicesTest, AScrubIsForTheBrokersUserAndChecksEveryByte) {
  const std::uint64_t payload = add_model("m").parts.front()->payload_bytes();
  const auto scrub = [&](Session& asker) {
    return ask<wire::ScrubReply>(rooms_->cache, &CacheService::scrub, asker, wire::Scrub{});
  };
  EXPECT_EQ(scrub(session(os_->uid() + 1)).error().code, ErrorCode::kPermissionDenied);
  const auto found = scrub(session());
  ASSERT_TRUE(found) << found.error().message;
  EXPECT_GE(found->bytes, payload);
  EXPECT_EQ(found->damaged, 0U);
}

TEST_F(ServicesTest, TheStatusCountsBlocksAndLeases) {
  add_model("m");
  Session& asker = session();
  ASSERT_TRUE(attach(asker, attach_of("m")));
  facts_->ram.foreign = {2, 4096};
  const auto status = ask<wire::StatusReply>(rooms_->cache, &CacheService::status, asker, wire::Empty{});
  ASSERT_TRUE(status) << status.error().message;
  const wire::TierStatus& ram = status->tiers.at("ram");
  EXPECT_EQ(ram.models, 1U);
  EXPECT_EQ(ram.leases, 1U);
  EXPECT_EQ(ram.leased, ram.made);
  EXPECT_EQ(ram.foreign_blocks, 2U);
  EXPECT_EQ(ram.foreign, 4096U);
}

// ---- sessions

TEST_F(ServicesTest, AGoodbyeEndsTheLeasesBeforeTheSession) {
  const std::string block = add_model("m").id;
  Session& asker = session();
  ASSERT_TRUE(attach(asker, attach_of("m")));
  ASSERT_TRUE(attach(asker, attach_of("m")));
  const wire::Endpoint endpoint{.run_directory = folder_.path()};
  std::size_t left = 99;
  SessionService sessions(facts_->env, endpoint, events_, rooms_->leases,
                          [&](const Session& /*ended*/) { left = facts_->workers.leases.count(block); });
  EXPECT_EQ((ask<wire::SessionByeReply>(sessions, &SessionService::bye, asker, wire::Empty{})).value().released, 2U);
  EXPECT_EQ(left, 0U);
}

}  // namespace
}  // namespace modelbroker
