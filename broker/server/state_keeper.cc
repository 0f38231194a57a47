#include "broker/server/state_keeper.h"

#include "broker/server/log.h"

namespace modelbroker {
namespace {
constexpr std::chrono::seconds kWriteAgain{1};
}

BlockRecord StateKeeper::record_of(const Resident& resident) const {
  BlockRecord record;
  record.block = resident.block->id();
  record.names = resident.names;
  record.type = resident.type;
  record.path = resident.path;
  record.pinned = resident.pinned;
  record.damaged = resident.damaged;
  record.ctime_ns = resident.source.ctime_ns;
  record.keep_alive_ns = resident.keep_alive.count();
  record.loader = resident.loader;
  record.source_uid = resident.source_uid;
  record.path_uid = resident.path_uid;
  for (const std::string& name : resident.names) record.given.push_back(store_.given(name));
  return record;
}

std::vector<BlockRecord> StateKeeper::all_records() const {
  std::vector<BlockRecord> records;
  for (const auto& [id, resident] : store_.all()) records.push_back(record_of(resident));
  return records;
}

void StateKeeper::save(const Resident& resident, std::function<void()> then) {
  save(resident, nullptr, std::move(then));
}

void StateKeeper::save(const Resident& resident, const Resident* other, std::function<void()> then) {
  std::vector<BlockRecord> records{record_of(resident)};
  if (other != nullptr) records.push_back(record_of(*other));
  apply(std::move(records), {}, std::move(then));
}

void StateKeeper::erase(const std::string& block, std::function<void()> then) { apply({}, {block}, std::move(then)); }

void StateKeeper::save_evicted(std::function<void()> then) { apply({}, {}, std::move(then)); }

void StateKeeper::when_written(std::function<void()> then) {
  jobs_.run([] { return true; }, [then = std::move(then)](bool) { then(); });
}

void StateKeeper::apply(std::vector<BlockRecord> records, std::vector<std::string> erased, std::function<void()> then) {
  if (behind_) return write_all(std::move(then));
  jobs_.run([this, records = std::move(records), erased = std::move(erased),
             evicted = evicted_.take_changes()] { return db_->apply(records, erased, evicted); },
            [this, then = std::move(then)](const Result<void>& written) {
              if (!written) failed(written.error());
              if (then) then();
            });
}

void StateKeeper::write_all(std::function<void()> then) {
  (void)evicted_.take_changes();  // all of them go
  jobs_.run([this, records = all_records(), evicted = evicted_.all()] { return db_->replace(records, evicted); },
            [this, then = std::move(then)](const Result<void>& written) {
              if (!written) {
                failed(written.error());
              } else if (std::exchange(behind_, false)) {
                log_info("the state database has all names again");
              }
              if (then) then();
            });
}

void StateKeeper::failed(const Error& error) {
  if (!std::exchange(behind_, true)) {
    log_warning(error.message +
                "; names may be lost, or unloaded ones be back, if the broker dies before it can be written");
  }
  if (std::exchange(again_, true)) return;
  loop_.after(kWriteAgain, [this] {
    again_ = false;
    if (behind_) write_all({});
  });
}

void StateKeeper::flush() {
  jobs_.drain();
  // Whether the last writes succeeded is said to the loop, which does not run any more.
  if (const auto written = db_->replace(all_records(), evicted_.all()); !written) {
    log_warning(written.error().message + "; names may be lost");
  }
}

}  // namespace modelbroker
