#include "broker/server/state_keeper.h"

#include "broker/server/log.h"

namespace modelbroker {

void StateKeeper::save(const Resident& resident, std::function<void()> then) {
  BlockRecord record;
  record.block = resident.block->id();
  record.names = resident.names;
  record.type = resident.type;
  record.path = resident.path;
  record.pinned = resident.pinned;
  record.ctime_ns = resident.source.ctime_ns;
  record.keep_alive_ns = resident.keep_alive.count();
  record.loader = resident.loader;
  record.source_uid = resident.source_uid;
  record.path_uid = resident.path_uid;
  for (const std::string& name : resident.names) record.name_loaders.push_back(store_.loader_of(name));
  apply({std::move(record)}, {}, std::move(then));
}

void StateKeeper::erase(const std::string& block, std::function<void()> then) { apply({}, {block}, std::move(then)); }

void StateKeeper::apply(std::vector<BlockRecord> records, std::vector<std::string> erased, std::function<void()> then) {
  jobs_.run([this, records = std::move(records), erased = std::move(erased)] { return db_->apply(records, erased); },
            [then = std::move(then)](const Result<void>& written) {
              if (!written) log_warning(written.error().message + "; names may be lost if the broker dies");
              if (then) then();
            });
}

}  // namespace modelbroker
