// Scrubber: checks whether resident blocks still hold what was loaded, by their chunk hashes.
//
// In the background within `scrub.rate`, each block once in `scrub.interval`, adopted ones first; and at once, as fast
// as one thread can, for a request. A damaged block is withdrawn and its names are remembered as an evicted model's:
// the next attach or load reads the file again. Holders keep what they have mapped, and the event tells them.
// It reads a chunk at a time by the block's own description: it makes no page, and stands in the way of no write
// lease, unload or eviction. Threads: the loop's; one job thread hashes.
#pragma once

#include <atomic>
#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "broker/base/environment.h"
#include "broker/base/event_sink.h"
#include "broker/base/jobs.h"
#include "broker/ram/ram_store.h"
#include "broker/workers/sessions.h"
#include "wire/messages.h"

namespace modelbroker {

class Scrubber {
 public:
  struct Ask {
    SessionId session = 0;
    std::deque<std::string> blocks;
    std::function<bool()> wanted;  // false: nobody waits any more
    std::function<void(const Result<wire::ScrubReply>&)> done;
  };

  // What the models above have to do with a block.
  struct Owners {
    std::function<std::string(const RamBlock&)> name;                              // for people
    std::function<void(RamBlock&, const wire::EventData& what_is_wrong)> damaged;  // withdraws them all
  };
  Scrubber(Environment& env, RamStore& ram, Loop& loop, EventSink& events, Owners owners)
      : env_(env), ram_(ram), loop_(loop), events_(events), owners_(std::move(owners)), jobs_(loop, 1) {}

  void check(Ask ask);
  void session_ended(SessionId session);
  // If the block's file was removed: withdraws it as a damaged one. True if so.
  bool withdraw_missing(RamBlock& block);
  void look();  // for what is due; also when the configuration has changed
  // Waits so long for the chunk in hand; false if its memory hangs.
  [[nodiscard]] bool stop(std::chrono::milliseconds patience);

 private:
  struct Pass {  // over one block
    std::shared_ptr<const Block> block;
    std::shared_ptr<const ChunkHashes> hashes;  // none: header and manifest come first
    std::uint32_t next = 0;
    wire::ScrubbedModel found;
  };
  using PassPtr = std::shared_ptr<Pass>;
  struct Order {
    Ask ask;
    PassPtr pass;
    wire::ScrubReply reply;
    TimePoint told;  // its progress
  };
  struct Piece {
    Result<void> outcome;
    std::shared_ptr<const ChunkHashes> hashes;
    std::uint64_t bytes = 0;
  };

  [[nodiscard]] PassPtr pass_over(const RamBlock& block);
  [[nodiscard]] static Piece check_piece(Os& os, const Pass& pass, const std::atomic<bool>& stop);
  [[nodiscard]] PassPtr next_asked();
  [[nodiscard]] PassPtr next_in_background();
  void run(const PassPtr& pass);
  void checked(const PassPtr& pass, Piece piece, TimePoint began);
  void end(const PassPtr& pass, const char* outcome);
  void tell_progress();
  void withdraw(RamBlock& block, const wire::ScrubbedModel& found);
  void arm(TimePoint when);

  Environment& env_;
  RamStore& ram_;
  Loop& loop_;
  EventSink& events_;
  const Owners owners_;
  std::deque<std::shared_ptr<Order>> orders_;
  PassPtr background_, running_;
  TimePoint next_at_;  // of the next chunk in the background
  std::optional<TimerId> timer_;
  std::atomic<bool> stop_ = false;
  Jobs jobs_;  // last: ends before what its thread uses
};

}  // namespace modelbroker
