#include "broker/models/state_keeper.h"

#include <algorithm>
#include <utility>

#include "broker/base/log.h"

namespace modelbroker {
namespace {

constexpr std::chrono::seconds kWriteAgain{1};
constexpr std::array kSuffixes{"", "-wal", "-shm"};
constexpr auto* kLost = "lost";  // in an error's details: the files are not where they were

BlockRecord block_record(const RamBlock& block) {
  return {block.id(), block.damaged, block.source().ctime_ns, block.loader, block.source_uid};
}

}  // namespace

StateKeeper::StateKeeper(Os& os, RamBlocks& blocks, Registry& models, Loop& loop, std::string path,
                         std::unique_ptr<StateDb> db, HoldPlace hold_place)
    : os_(os),
      loop_(loop),
      blocks_(blocks),
      models_(models),
      path_(std::move(path)),
      hold_place_(std::move(hold_place)),
      db_(std::move(db)),
      jobs_(loop, 1) {
  mark_files();
}

ModelRecord StateKeeper::record_of(const ModelEntry& model) const {
  ModelRecord record{.id = model.id};
  for (const RamBlock* const part : model.parts) record.blocks.push_back(part->id());
  record.names = model.names;
  for (const std::string& name : model.names) record.given.push_back(models_.given(name));
  record.type = model.type;
  record.path = model.path;
  record.pinned = model.pinned;
  record.keep_alive_ns = model.keep_alive.count();
  return record;
}

StateRecords StateKeeper::all_records() const {
  StateRecords all;
  for (const auto& [id, block] : blocks_.all()) all.blocks.push_back(block_record(block));
  for (const auto& [id, model] : models_.all()) all.models.push_back(record_of(model));
  all.remembered = models_.remembered().all();
  return all;
}

void StateKeeper::save(const std::vector<std::string>& models, const std::vector<std::string>& blocks,
                       std::function<void()> then) {
  if (behind_) return write_all(std::move(then));
  StateRecords changes;
  for (const std::string& id : models) {
    const ModelEntry* const model = models_.find_id(id);
    model != nullptr ? changes.models.push_back(record_of(*model)) : changes.ended_models.push_back(id);
  }
  for (const std::string& id : blocks) {
    const RamBlock* const block = blocks_.find(id);
    block != nullptr ? changes.blocks.push_back(block_record(*block)) : changes.gone_blocks.push_back(id);
  }
  RememberedNames::Changes names = models_.remembered().take_changes();
  changes.remembered = std::move(names.remembered);
  changes.forgotten_names = std::move(names.forgotten);
  jobs_.run([this, changes = std::move(changes)] { return kept(db_ ? db_->apply(changes) : Result<void>()); },
            [this, then = std::move(then)](const Result<void>& outcome) {
              if (!outcome && outcome.error().details.contains(kLost)) return lost(then);
              written(outcome, then);
            });
}

void StateKeeper::when_written(std::function<void()> then) {
  jobs_.run([this] { return in_place(); }, [this, then = std::move(then)](bool found) { found ? then() : lost(then); });
}

void StateKeeper::write_all(std::function<void()> then) {
  if (const auto held = hold_place_(); !held) return written(held, then);
  (void)models_.remembered().take_changes();  // all of them go
  jobs_.run([this, all = all_records()] { return replace(all); },
            [this, then = std::move(then)](const Result<void>& outcome) {
              if (outcome && std::exchange(behind_, false)) log_info("the state database has all names again");
              if (outcome) warned_ = false;
              written(outcome, then);
            });
}

void StateKeeper::written(const Result<void>& outcome, const std::function<void()>& then) {
  if (!outcome) failed(outcome.error());
  if (then) then();
}

// What was asked for is written with all else, and answered then.
void StateKeeper::lost(std::function<void()> then) {
  if (!std::exchange(behind_, true)) {
    log_warning("the state database '" + path_ +
                "' was removed or replaced while this broker ran: names and pins are written again from memory");
  }
  write_all(std::move(then));
}

void StateKeeper::look() {
  if (behind_ || std::exchange(looking_, true)) return;
  jobs_.run([this] { return in_place(); },
            [this](bool found) {
              looking_ = false;
              if (!found && !behind_) lost({});
            });
}

// ---- on the job thread

void StateKeeper::mark_files() {
  for (std::size_t i = 0; i < files_.size(); ++i) files_.at(i) = FileMark::of(os_, path_ + kSuffixes.at(i));
}

bool StateKeeper::in_place() const {
  return db_ && std::ranges::all_of(files_, [this](const FileMark& file) { return file.in_place(os_); });
}

// What was written to a file that has no name any more is lost with this process.
Result<void> StateKeeper::kept(Result<void> written) const {
  if (in_place()) return written;
  return fail(ErrorCode::kUnavailable, "the state database '" + path_ + "' was removed", {{kLost, 1}});
}

Result<void> StateKeeper::replace(const StateRecords& all) {
  if (!in_place()) MODELBROKER_TRY(open_again());
  return kept(db_->replace(all));
}

Result<void> StateKeeper::open_again() {
  db_.reset();  // before another file is there: SQLite removes its -wal by name
  if (!files_.front().in_place(os_)) {
    // What SQLite kept beside the old one must not be taken for the new one's.
    for (const char* const suffix : {kSuffixes[1], kSuffixes[2]}) (void)os_.unlink(path_ + suffix);
    const std::string aside = path_ + ".replaced";
    (void)os_.unlink(aside);
    (void)os_.rename_noreplace(path_, aside);
  }
  MODELBROKER_ASSIGN(auto opened, StateDb::open(path_));
  if (!opened.warning.empty()) log_warning(opened.warning);
  db_ = std::move(opened.db);
  mark_files();
  return {};
}

void StateKeeper::failed(const Error& error) {
  behind_ = true;
  if (!std::exchange(warned_, true)) {
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
  if (const auto written = replace(all_records()); !written) {
    log_warning(written.error().message + "; names may be lost");
  }
}

}  // namespace modelbroker
