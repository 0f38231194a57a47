#include "broker/ram/scrubber.h"

#include <algorithm>

#include "broker/base/log.h"
#include "broker/base/sizes.h"
#include "shm/text.h"
#include "wire/frame.h"

namespace modelbroker {
namespace {

// So often it looks whether a new block has become due.
constexpr Duration kLookSeldom = std::chrono::seconds(10), kLookOften = std::chrono::milliseconds(50);
constexpr std::chrono::milliseconds kProgressEvery{100};

bool gone(const RamBlock* block) { return block == nullptr || block->draining() || block->removing || block->damaged; }

constexpr const char* kMissing = "its file is not there any more: somebody removed it";

// What a pass reads.
std::uint64_t bytes_of(const BlockLayout& layout) {
  return kPage + layout.manifest.size + layout.chunk_table.size + layout.payload.size;
}

}  // namespace

void Scrubber::check(Ask ask) {
  orders_.push_back(std::make_shared<Order>(Order{std::move(ask), {}, {}, {}}));
  look();
}

bool Scrubber::withdraw_missing(RamBlock& block) {
  if (gone(&block) || !block.block->is_missing(env_.os)) return false;
  wire::ScrubbedModel found = pass_over(block)->found;
  found.reason = kMissing;
  withdraw(block, found);
  return true;
}

void Scrubber::session_ended(SessionId session) {
  const auto stays = [session](const auto& order) { return order->ask.session != session; };
  const auto first = std::stable_partition(orders_.begin(), orders_.end(), stays);
  const std::vector<std::shared_ptr<Order>> ended(first, orders_.end());
  orders_.erase(first, orders_.end());
  for (const std::shared_ptr<Order>& order : ended) {
    order->ask.done(fail(ErrorCode::kCancelled, "the session that asked for the scrub has ended"));
  }
}

bool Scrubber::stop(std::chrono::milliseconds patience) {
  stop_ = true;
  return jobs_.stop(patience);
}

// One chunk is looked at at any time. Who asked goes first; the background waits meanwhile, where it was.
void Scrubber::look() {
  if (running_ || stop_) return;
  PassPtr next = next_asked();
  if (!next) next = next_in_background();
  if (next) run(next);
}

Scrubber::PassPtr Scrubber::pass_over(const RamBlock& block) {
  auto pass = std::make_shared<Pass>();
  pass->block = block.block;
  pass->found.model = owners_.name(block);
  pass->found.block = block.id();
  pass->found.generation = block.generation();
  return pass;
}

Scrubber::PassPtr Scrubber::next_asked() {
  while (!orders_.empty()) {
    const std::shared_ptr<Order> order = orders_.front();
    if (!order->ask.wanted()) {
      orders_.pop_front();
      continue;
    }
    while (!order->pass && !order->ask.blocks.empty()) {
      const RamBlock* const block = ram_.blocks.find(order->ask.blocks.front());
      order->ask.blocks.pop_front();
      if (!gone(block)) order->pass = pass_over(*block);
    }
    if (order->pass) return order->pass;
    orders_.pop_front();
    order->ask.done(order->reply);
  }
  return nullptr;
}

Scrubber::PassPtr Scrubber::next_in_background() {
  const TimePoint now = env_.clock.now();
  if (env_.config.scrub_rate == 0) {
    background_.reset();
    return nullptr;
  }
  if (background_ && gone(ram_.blocks.find(background_->found.block))) background_.reset();
  TimePoint due = now + std::clamp(env_.config.scrub_interval, kLookOften, kLookSeldom);
  if (!background_) {
    const RamBlock* first = nullptr;
    for (const auto& [id, block] : ram_.blocks.all()) {
      if (gone(&block)) continue;
      // What an earlier broker left was looked at by nobody yet.
      const TimePoint when = block.checked ? *block.checked + env_.config.scrub_interval : TimePoint::min();
      if (when >= due) continue;
      due = when;
      first = &block;
    }
    if (first != nullptr && due <= now) background_ = pass_over(*first);
  }
  if (background_) due = next_at_;
  if (background_ && due <= now) return background_;
  arm(due);
  return nullptr;
}

Scrubber::Piece Scrubber::check_piece(Os& os, const Pass& pass, const std::atomic<bool>& stop) {
  const Block& block = *pass.block;
  const BlockLayout& layout = block.header().layout;
  if (pass.hashes) {
    return {block.check_chunk(os, pass.next, (*pass.hashes)[pass.next], stop), nullptr, layout.chunk(pass.next).size};
  }
  auto hashes = block.check_contents(os);
  if (!hashes) return {tl::unexpected(std::move(hashes).error()), nullptr, 0};
  return {{}, std::make_shared<const ChunkHashes>(std::move(*hashes)), bytes_of(layout) - layout.payload.size};
}

void Scrubber::run(const PassPtr& pass) {
  running_ = pass;
  jobs_.run([os = &env_.os, pass, stop = &stop_] { return check_piece(*os, *pass, *stop); },
            [this, pass, began = env_.clock.now()](Piece piece) { checked(pass, std::move(piece), began); });
}

void Scrubber::checked(const PassPtr& pass, Piece piece, TimePoint began) {
  running_.reset();
  if (piece.outcome) {
    env_.counters.scrubbed_bytes += piece.bytes;
    pass->found.bytes += piece.bytes;
  }
  if (pass == background_) {
    const double rate = static_cast<double>(std::max<std::uint64_t>(env_.config.scrub_rate, 1));
    next_at_ = began + std::chrono::duration_cast<Duration>(
                           std::chrono::duration<double>(static_cast<double>(piece.bytes) / rate));
  }
  RamBlock* const block = ram_.blocks.find(pass->found.block);
  if (gone(block)) {
    end(pass, "gone");
  } else if (!piece.outcome) {
    const Error& error = piece.outcome.error();
    pass->found.reason = error.message;
    block->checked = env_.clock.now();  // whatever it was, not again at once
    if (error.code != ErrorCode::kDataLoss) {
      if (!stop_) log_warning("block " + pass->found.block + " cannot be checked: " + error.message);
      end(pass, "failed");
    } else {
      if (const auto chunk = error.details.find("chunk"); chunk != error.details.end()) {
        pass->found.chunk = chunk->second;
      }
      pass->found.offset = error.details.at("offset");
      withdraw(*block, pass->found);
      end(pass, "damaged");
    }
  } else if (piece.hashes && withdraw_missing(*block)) {
    pass->found.reason = kMissing;
    end(pass, "damaged");
  } else {
    if (piece.hashes) {
      pass->hashes = std::move(piece.hashes);
    } else {
      ++pass->next;
    }
    tell_progress();
    if (pass->next == pass->hashes->size()) {
      block->checked = env_.clock.now();
      end(pass, "good");
    }
  }
  look();
}

void Scrubber::end(const PassPtr& pass, const char* outcome) {
  if (pass == background_) background_.reset();
  for (const std::shared_ptr<Order>& order : orders_) {
    if (order->pass != pass) continue;
    order->pass.reset();
    pass->found.outcome = outcome;
    order->reply.bytes += pass->found.bytes;
    if (pass->found.outcome == "damaged") ++order->reply.damaged;
    order->reply.models.push_back(pass->found);
  }
}

void Scrubber::tell_progress() {
  if (orders_.empty() || !orders_.front()->pass) return;
  Order& order = *orders_.front();
  const TimePoint now = env_.clock.now();
  if (now < order.told + kProgressEvery) return;
  order.told = now;
  wire::EventData data;
  data.model = order.pass->found.model;
  data.block = order.pass->found.block;
  data.read_bytes = order.pass->found.bytes;
  data.total_bytes = bytes_of(order.pass->block->header().layout);
  events_.publish("model.scrubbing", data);
}

// Its models' names go on: the next attach or load by one reads the file again.
void Scrubber::withdraw(RamBlock& block, const wire::ScrubbedModel& found) {
  ++env_.counters.scrub_errors;
  const std::string where =
      found.reason == kMissing ? " is missing: " : " is damaged at offset " + std::to_string(found.offset) + ": ";
  log_error("block " + found.block + " of '" + printable(found.model) + "'" + where + found.reason +
            "; withdrawn, and loaded again at the next attach. Workers holding this block should re-attach");
  wire::EventData data;
  data.reason = found.reason;
  data.chunk = found.chunk;
  data.offset = found.offset;
  data.outcome = "withdrawn";
  owners_.damaged(block, data);
}

void Scrubber::arm(TimePoint when) {
  if (timer_) loop_.cancel(*timer_);
  timer_ = loop_.after(std::max(when - env_.clock.now(), Duration(0)), [this] {
    timer_.reset();
    look();
  });
}

}  // namespace modelbroker
