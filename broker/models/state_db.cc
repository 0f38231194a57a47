#include "broker/models/state_db.h"

#include <SQLiteCpp/SQLiteCpp.h>

#include <cstdio>
#include <filesystem>
#include <map>
#include <system_error>

#include "shm/instruments.h"
#include "shm/limits.h"

namespace modelbroker {
namespace {

constexpr int kSchemaVersion = 8;
// SQLite's own numbers (sqlite3.h), so that its header is not needed here.
constexpr int kSqliteError = 1;  // here: tables that are not ours
constexpr int kSqliteCorrupt = 11;
constexpr int kSqliteIo = 10;
constexpr int kSqliteFull = 13;
constexpr int kSqliteCannotOpen = 14;  // also where something else than a file stands there
constexpr int kSqliteNotADatabase = 26;

struct AnotherVersion {
  int version;
};

// A database that cannot be read, now or ever; a full disk or somebody else's lock is not that.
bool damaged(const SQLite::Exception& error) {
  const int code = error.getErrorCode();
  return code == kSqliteError || code == kSqliteCorrupt || code == kSqliteNotADatabase;
}

Error error_of(const std::string& path, const SQLite::Exception& error) {
  if (error.getErrorCode() == kSqliteCannotOpen) {
    return {ErrorCode::kFailedPrecondition,
            "the state database '" + path + "' cannot be opened (" + error.what() +
                "): it must be a file that this user may write to; look at what stands there, or choose "
                "another --run-directory"};
  }
  if (error.getErrorCode() == kSqliteIo && file_size_limit()) {  // SQLite has no code for EFBIG
    return {ErrorCode::kResourceExhausted,
            "the state database '" + path + "': " + error.what() + "; files of this process may have at most " +
                std::to_string(*file_size_limit()) + " bytes: raise that by " + file_size_advice()};
  }
  const ErrorCode code = error.getErrorCode() == kSqliteFull ? ErrorCode::kResourceExhausted : ErrorCode::kInternal;
  return {code, "the state database '" + path + "': " + error.what()};
}

// Keeps a file that this broker does not read, in the place of one that was kept there before.
void set_aside(const std::string& path, const std::string& aside) {
  for (const char* suffix : {"", "-wal", "-shm"}) {
    (void)std::remove((aside + suffix).c_str());
    (void)std::rename((path + suffix).c_str(), (aside + suffix).c_str());
  }
}

// `done`: what became of a database of another version.
std::string other_version(const std::string& path, AnotherVersion found, const std::string& aside, const char* done) {
  return "the state database '" + path + "' is of version " + std::to_string(found.version) +
         " and this broker has version " + std::to_string(kSchemaVersion) + "; it " + done + " to '" + aside +
         "'. Names are taken from the blocks; aliases, pins, keep_alive, who loaded what and the names of "
         "evicted models are lost";
}

}  // namespace

struct StateDb::Impl {
  explicit Impl(const std::string& file)
      : path(file), db(file, SQLite::OPEN_READWRITE | SQLite::OPEN_CREATE, /*busy timeout ms*/ 1000) {
    // Blocks do not outlive the machine, so neither need their names: no fsync. A killed process
    // loses nothing that was written.
    db.exec("PRAGMA journal_mode=WAL");
    db.exec("PRAGMA synchronous=OFF");
    const int version = db.execAndGet("PRAGMA user_version").getInt();
    if (version == 0) {
      make_tables();
      crash_point("state_db.tables_made");
      db.exec("PRAGMA user_version=" + std::to_string(kSchemaVersion));
    } else if (version != kSchemaVersion) {
      throw AnotherVersion{version};
    }
  }

  void make_tables() {
    for (const char* const table :
         {"blocks(block TEXT PRIMARY KEY, ctime_ns INTEGER NOT NULL, loader INTEGER NOT NULL,"
          " source_uid INTEGER NOT NULL, damaged INTEGER NOT NULL)",
          "models(id TEXT PRIMARY KEY, type TEXT NOT NULL, path TEXT NOT NULL, pinned INTEGER NOT NULL,"
          " keep_alive_ns INTEGER NOT NULL)",
          "parts(model TEXT NOT NULL, position INTEGER NOT NULL, block TEXT NOT NULL, PRIMARY KEY(model, position))",
          "names(name TEXT PRIMARY KEY, model TEXT NOT NULL, position INTEGER NOT NULL, loader INTEGER NOT NULL,"
          " path TEXT NOT NULL, is_label INTEGER NOT NULL)",
          // Of a source, all columns or none.
          "remembered(name TEXT PRIMARY KEY, position INTEGER NOT NULL, loader INTEGER NOT NULL, path TEXT NOT NULL,"
          " is_label INTEGER NOT NULL, type TEXT NOT NULL, keep_alive_ns INTEGER NOT NULL, pinned INTEGER NOT NULL,"
          " device INTEGER, inode INTEGER, size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER)"}) {
      db.exec(std::string("CREATE TABLE IF NOT EXISTS ") + table + " WITHOUT ROWID");
    }
    db.exec("CREATE INDEX IF NOT EXISTS names_of ON names(model)");
  }

  std::vector<BlockRecord> read_blocks() {
    std::vector<BlockRecord> records;
    SQLite::Statement rows(db, "SELECT block, ctime_ns, loader, source_uid, damaged FROM blocks ORDER BY block");
    while (rows.executeStep()) {
      records.push_back({.block = rows.getColumn(0).getString(),
                         .damaged = rows.getColumn(4).getInt() != 0,
                         .ctime_ns = rows.getColumn(1).getInt64(),
                         .loader = rows.getColumn(2).getUInt(),
                         .source_uid = rows.getColumn(3).getUInt()});
    }
    return records;
  }

  std::vector<ModelRecord> read_models() {
    std::map<std::string, ModelRecord> records;
    SQLite::Statement models(db, "SELECT id, type, path, pinned, keep_alive_ns FROM models");
    while (models.executeStep()) {
      ModelRecord record{.id = models.getColumn(0).getString()};
      record.type = models.getColumn(1).getString();
      record.path = models.getColumn(2).getString();
      record.pinned = models.getColumn(3).getInt() != 0;
      record.keep_alive_ns = models.getColumn(4).getInt64();
      records.emplace(record.id, std::move(record));
    }
    SQLite::Statement parts(db, "SELECT model, block FROM parts ORDER BY position");
    while (parts.executeStep()) {
      const auto found = records.find(parts.getColumn(0).getString());
      if (found != records.end()) found->second.blocks.push_back(parts.getColumn(1).getString());
    }
    SQLite::Statement names(db, "SELECT name, model, loader, path, is_label FROM names ORDER BY position");
    while (names.executeStep()) {
      const auto found = records.find(names.getColumn(1).getString());
      if (found == records.end()) continue;
      found->second.names.push_back(names.getColumn(0).getString());
      found->second.given.push_back(
          {names.getColumn(2).getUInt(), names.getColumn(3).getString(), names.getColumn(4).getInt() != 0});
    }
    std::vector<ModelRecord> list;
    list.reserve(records.size());
    for (auto& [id, record] : records) list.push_back(std::move(record));
    return list;
  }

  std::vector<RememberedNames::Named> read_remembered() {
    std::vector<RememberedNames::Named> list;
    SQLite::Statement rows(db,
                           "SELECT name, position, loader, path, is_label, type, keep_alive_ns, pinned, device,"
                           " inode, size, mtime_ns, ctime_ns FROM remembered ORDER BY position");
    while (rows.executeStep()) {
      RememberedNames::Named named;
      named.name = rows.getColumn(0).getString();
      named.position = static_cast<std::uint64_t>(rows.getColumn(1).getInt64());
      named.model.given = {rows.getColumn(2).getUInt(), rows.getColumn(3).getString(), rows.getColumn(4).getInt() != 0};
      named.model.type = rows.getColumn(5).getString();
      named.model.keep_alive = Duration(rows.getColumn(6).getInt64());
      named.model.pinned = rows.getColumn(7).getInt() != 0;
      if (!rows.getColumn(8).isNull()) {
        named.model.source = FileIdentity{static_cast<std::uint64_t>(rows.getColumn(8).getInt64()),
                                          static_cast<std::uint64_t>(rows.getColumn(9).getInt64()),
                                          static_cast<std::uint64_t>(rows.getColumn(10).getInt64()),
                                          rows.getColumn(11).getInt64(), rows.getColumn(12).getInt64()};
      }
      list.push_back(std::move(named));
    }
    return list;
  }

  void remember(const RememberedNames::Named& named) {
    SQLite::Statement row(db, "INSERT OR REPLACE INTO remembered VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)");
    const RememberedNames::Model& model = named.model;
    row.bind(1, named.name);
    row.bind(2, static_cast<std::int64_t>(named.position));
    row.bind(3, model.given.loader);
    row.bind(4, model.given.path);
    row.bind(5, model.given.is_label ? 1 : 0);
    row.bind(6, model.type);
    row.bind(7, static_cast<std::int64_t>(model.keep_alive.count()));
    row.bind(8, model.pinned ? 1 : 0);
    if (model.source) {  // else they stay NULL
      row.bind(9, static_cast<std::int64_t>(model.source->device));
      row.bind(10, static_cast<std::int64_t>(model.source->inode));
      row.bind(11, static_cast<std::int64_t>(model.source->size));
      row.bind(12, model.source->mtime_ns);
      row.bind(13, model.source->ctime_ns);
    }
    row.exec();
  }

  void erase(const char* table, const char* column, const std::string& id) {
    SQLite::Statement row(db, std::string("DELETE FROM ") + table + " WHERE " + column + " = ?");
    row.bind(1, id);
    row.exec();
  }

  void end_model(const std::string& id) {
    erase("names", "model", id);
    erase("parts", "model", id);
    erase("models", "id", id);
  }

  void insert(const BlockRecord& record) {
    SQLite::Statement row(db, "INSERT OR REPLACE INTO blocks VALUES(?, ?, ?, ?, ?)");
    row.bind(1, record.block);
    row.bind(2, record.ctime_ns);
    row.bind(3, record.loader);
    row.bind(4, record.source_uid);
    row.bind(5, record.damaged ? 1 : 0);
    row.exec();
  }

  void insert(const ModelRecord& record) {
    end_model(record.id);
    SQLite::Statement model(db, "INSERT INTO models VALUES(?, ?, ?, ?, ?)");
    model.bind(1, record.id);
    model.bind(2, record.type);
    model.bind(3, record.path);
    model.bind(4, record.pinned ? 1 : 0);
    model.bind(5, record.keep_alive_ns);
    model.exec();
    for (std::size_t position = 0; position < record.blocks.size(); ++position) {
      SQLite::Statement row(db, "INSERT INTO parts VALUES(?, ?, ?)");
      row.bind(1, record.id);
      row.bind(2, static_cast<std::int64_t>(position));
      row.bind(3, record.blocks[position]);
      row.exec();
    }
    for (std::size_t position = 0; position < record.names.size(); ++position) {
      // A name that moves to a newer model may still stand at the older one's.
      SQLite::Statement row(db, "INSERT OR REPLACE INTO names VALUES(?, ?, ?, ?, ?, ?)");
      const GivenName& given = record.given.at(position);
      row.bind(1, record.names[position]);
      row.bind(2, record.id);
      row.bind(3, static_cast<std::int64_t>(position));
      row.bind(4, given.loader);
      row.bind(5, given.path);
      row.bind(6, given.is_label ? 1 : 0);
      row.exec();
    }
  }

  void write(const StateRecords& changes) {
    for (const std::string& id : changes.ended_models) end_model(id);
    for (const std::string& block : changes.gone_blocks) erase("blocks", "block", block);
    for (const std::string& name : changes.forgotten_names) erase("remembered", "name", name);
    for (const BlockRecord& record : changes.blocks) insert(record);
    for (const ModelRecord& record : changes.models) insert(record);
    for (const RememberedNames::Named& named : changes.remembered) remember(named);
  }

  std::string path;
  SQLite::Database db;
};

StateDb::StateDb(std::unique_ptr<Impl> impl) noexcept : impl_(std::move(impl)) {}
StateDb::~StateDb() = default;

Result<StateDb::Opened> StateDb::open(const std::string& path) {
  Opened opened;
  for (const bool again : {false, true}) {
    try {
      auto impl = std::make_unique<Impl>(path);
      opened.records.blocks = impl->read_blocks();
      opened.records.models = impl->read_models();
      opened.records.remembered = impl->read_remembered();
      // Where files lie is not everybody's to know.
      for (const char* suffix : {"", "-wal", "-shm"}) {
        std::error_code ignored;
        std::filesystem::permissions(path + suffix, std::filesystem::perms(0600), ignored);
      }
      opened.db = std::unique_ptr<StateDb>(new StateDb(std::move(impl)));
      return opened;
    } catch (const SQLite::Exception& error) {
      if (again || !damaged(error)) return tl::unexpected<Error>(error_of(path, error));
      const std::string aside = path + ".damaged";
      opened.warning =
          error_of(path, error).message + "; it was moved to '" + aside + "' and names are taken from the blocks";
      set_aside(path, aside);
    } catch (const AnotherVersion& found) {
      const std::string aside = path + ".version-" + std::to_string(found.version);
      if (again) {
        return fail(ErrorCode::kFailedPrecondition, other_version(path, found, aside, "cannot be moved") + ": move it");
      }
      opened.warning = other_version(path, found, aside, "was moved");
      set_aside(path, aside);
    }
  }
  return fail(ErrorCode::kInternal, "unreachable");
}

template <class Change>
Result<void> StateDb::change(Change what) {
  try {
    SQLite::Transaction transaction(impl_->db);
    what();
    crash_point("state_db.before_commit");
    transaction.commit();
    crash_point("state_db.after_commit");
    return {};
  } catch (const SQLite::Exception& error) {
    return tl::unexpected<Error>(error_of(impl_->path, error));
  }
}

Result<void> StateDb::apply(const StateRecords& changes) {
  return change([&] { impl_->write(changes); });
}

Result<void> StateDb::replace(const StateRecords& all) {
  return change([&] {
    for (const char* const table : {"names", "parts", "models", "blocks", "remembered"}) {
      impl_->db.exec(std::string("DELETE FROM ") + table);
    }
    impl_->write(all);
  });
}

}  // namespace modelbroker
