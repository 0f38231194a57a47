#include "broker/ram/load_notes.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <span>

#include "broker/base/log.h"
#include "shm/block_format.h"
#include "shm/text.h"

namespace modelbroker {
namespace {

constexpr std::uint64_t kDeathsAllowed = 1;
constexpr std::size_t kMaxNotes = 1000;
constexpr std::size_t kMaxTold = 20;
constexpr std::size_t kMaxLabel = 80;
constexpr std::uint64_t kMaxDeaths = 1'000'000;
constexpr std::string_view kRunning = "running", kDied = "died";

// What a file's name may hold, of the end of the path.
std::string label_of(std::string_view path) {
  std::string_view name = path.substr(path.rfind('/') + 1);
  if (name.size() > kMaxLabel) name.remove_prefix(name.size() - kMaxLabel);
  std::string label(name.empty() ? "_" : name);
  const auto is_plain = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-' ||
           c == '.';
  };
  std::ranges::replace_if(
      label, [&](char c) { return !is_plain(c); }, '_');
  return label;
}

// Of "a.b.c" the "a"; what follows the dot stays.
std::string_view next_word(std::string_view& text) {
  const std::size_t dot = std::min(text.find('.'), text.size());
  const std::string_view word = text.substr(0, dot);
  text.remove_prefix(std::min(dot + 1, text.size()));
  return word;
}

bool read_number(std::string_view word, auto& number) {
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), number);
  return error == std::errc() && end == word.data() + word.size();
}

}  // namespace

// The same file by its own word, or by where it lies: some file systems give other numbers at each look. A change of
// ctime alone is not another file.
bool LoadNotes::Entry::is(const Entry& other) const noexcept {
  if (size != other.size || mtime_ns != other.mtime_ns) return false;
  return (device == other.device && inode == other.inode) || has_path_of(other);
}

bool LoadNotes::Entry::has_path_of(const Entry& other) const noexcept {
  return path_hash != 0 && path_hash == other.path_hash;
}

LoadNotes::Entry LoadNotes::entry_of(const Source& source) {
  const FileIdentity& identity = source.identity;
  Entry entry{.device = identity.device, .inode = identity.inode, .size = identity.size, .mtime_ns = identity.mtime_ns};
  if (!source.is_label) entry.path_hash = hash64(std::as_bytes(std::span(source.path)));
  entry.label = label_of(source.path);
  return entry;
}

// <state>.<deaths>.<device>.<inode>.<size>.<mtime>.<hash of the path>.<label>
std::string LoadNotes::path_of(const Entry& entry, bool running) const {
  std::string name(running ? kRunning : kDied);
  for (const std::uint64_t number : {entry.deaths, entry.device, entry.inode, entry.size}) {
    name += '.' + std::to_string(number);
  }
  name += '.' + std::to_string(entry.mtime_ns) + '.' + std::to_string(entry.path_hash);
  return folder_ + "/" + name + "." + entry.label;
}

std::optional<LoadNotes::Entry> LoadNotes::read(std::string_view name) {
  Entry entry;
  const std::string_view state = next_word(name);
  if (state != kRunning && state != kDied) return std::nullopt;
  entry.running = state == kRunning ? 1 : 0;
  for (std::uint64_t* const number : {&entry.deaths, &entry.device, &entry.inode, &entry.size}) {
    if (!read_number(next_word(name), *number)) return std::nullopt;
  }
  if (!read_number(next_word(name), entry.mtime_ns)) return std::nullopt;
  if (!read_number(next_word(name), entry.path_hash)) return std::nullopt;
  if (name != label_of(name) || entry.deaths > kMaxDeaths) return std::nullopt;
  entry.label = name;
  return entry;
}

Result<void> LoadNotes::open() {
  auto names = os_.list_directory(folder_);
  if (!names) {
    if (names.error().number == ENOENT) return {};
    return fail_errno(names.error().number, "looking into '" + folder_ + "'");
  }
  std::erase_if(*names, [](const std::string& name) { return name == "." || name == ".."; });
  std::ranges::sort(*names);
  std::size_t removed = 0;
  for (const std::string& name : *names) {
    const auto entry = read(name);
    if (entry && entries_.size() < kMaxNotes) {
      MODELBROKER_TRY(take_over(*entry, name));
      continue;
    }
    if (++removed <= kMaxTold) {
      log_warning("'" + folder_ + "/" + printable(name) + "' is " +
                  (entry ? "one note of a load too many" : "not a note of a load") + ": removed");
    }
    MODELBROKER_TRY(remove(folder_ + "/" + name));
  }
  if (removed > kMaxTold) log_warning("and " + std::to_string(removed - kMaxTold) + " more in '" + folder_ + "'");
  return {};
}

// Those that died earlier come first: "died" before "running".
Result<void> LoadNotes::take_over(Entry entry, const std::string& name) {
  const bool was_running = std::exchange(entry.running, 0) > 0;
  if (was_running) ++entry.deaths;
  const std::string path = folder_ + "/" + name;
  const auto known = std::ranges::find_if(entries_, [&](const Entry& other) { return other.is(entry); });
  if (known != entries_.end() && known->deaths >= entry.deaths) return remove(path);
  if (was_running) {
    const bool is_refused = entry.deaths > kDeathsAllowed;
    log_warning("the last broker died while it loaded '" + entry.label +
                "' (deaths in a row: " + std::to_string(entry.deaths) + "): " +
                (is_refused ? "refused until the file changes or 'modelbroker load --retry' asks for it"
                            : "loaded once more if somebody asks, and refused if the broker dies again"));
    if (auto moved = os_.rename_noreplace(path, path_of(entry, false)); !moved) {
      return fail_errno(moved.error().number, "renaming '" + path + "'");
    }
  }
  if (known != entries_.end()) {
    MODELBROKER_TRY(remove(path_of(*known, false)));
    entries_.erase(known);
  }
  entry.id = next_id_++;
  entries_.push_back(std::move(entry));
  return {};
}

Result<void> LoadNotes::remove(const std::string& path) {
  const auto removed = os_.unlink(path);
  if (removed || removed.error().number == ENOENT) return {};
  const int number = removed.error().number;
  if (number != EISDIR && number != EPERM) return fail_errno(number, "removing '" + path + "'");
  log_warning("'" + printable(path) + "' cannot be removed: it is not a file; left alone");
  return {};
}

Result<void> LoadNotes::check(const Source& source) {
  const Entry wanted = entry_of(source);
  std::uint64_t deaths = 0;
  {
    const std::lock_guard lock(mutex_);
    for (const Entry& entry : entries_) {
      if (entry.is(wanted)) deaths = std::max(deaths, entry.deaths);
    }
  }
  if (deaths <= kDeathsAllowed) return {};
  return fail(ErrorCode::kFailedPrecondition,
              "'" + printable(source.path) + "' is refused: the broker died " + std::to_string(deaths) +
                  " times in a row while it loaded this file. The broker's log and the kernel's (dmesg) tell how: "
                  "often memory or a limit was too small. When that is mended, 'modelbroker load FILE --retry' loads "
                  "it all the same; another file at that path is loaded as usual",
              {{"deaths", deaths}});
}

LoadNotes::Note LoadNotes::write(const Source& source) {
  const std::lock_guard changing(files_);
  Entry entry = entry_of(source);
  std::optional<Entry> died;
  std::vector<Entry> outdated;
  {
    const std::lock_guard lock(mutex_);
    const auto known = std::ranges::find_if(entries_, [&](const Entry& other) { return other.is(entry); });
    if (known != entries_.end()) {
      if (known->running++ > 0) return {this, known->id};
      entry = *known;
      died = *known;
    } else {
      // What lay at that path before is not there any more.
      std::erase_if(entries_, [&](const Entry& other) {
        if (other.running > 0 || !other.has_path_of(entry)) return false;
        outdated.push_back(other);
        return true;
      });
      entry.id = next_id_++;
      entry.running = 1;
      entries_.push_back(entry);
    }
  }
  for (const Entry& other : outdated) (void)os_.unlink(path_of(other, false));
  const std::string path = path_of(entry, true);
  if (!died || !os_.rename_noreplace(path_of(*died, false), path)) make(path);
  return {this, entry.id};
}

void LoadNotes::make(const std::string& path) {
  constexpr int kFlags = O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW;
  auto file = os_.open(path, kFlags, 0600);
  if (!file && file.error().number == ENOENT) {
    if (auto made = os_.mkdir(folder_, 0700); !made && made.error().number != EEXIST) {
      return failed(folder_, made.error());
    }
    file = os_.open(path, kFlags, 0600);
  }
  if (!file) failed(path, file.error());
}

void LoadNotes::failed(const std::string& path, Errno error) {
  if (told_failure_.exchange(true)) return;
  log_warning(error_from_errno(error.number, "making '" + path + "'").message +
              ": a broker that dies of a load is not noticed by the next one");
}

void LoadNotes::end(std::uint64_t id, bool pause) {
  const std::lock_guard changing(files_);
  std::optional<Entry> ended;
  {
    const std::lock_guard lock(mutex_);
    const auto known = std::ranges::find(entries_, id, &Entry::id);
    if (known == entries_.end() || --known->running > 0) return;
    ended = *known;
    if (!pause || known->deaths == 0) entries_.erase(known);
  }
  const std::string path = path_of(*ended, true);
  if (pause && ended->deaths > 0) {
    (void)os_.rename_noreplace(path, path_of(*ended, false));
  } else {
    (void)os_.unlink(path);
  }
}

void LoadNotes::strike_all() {
  const std::lock_guard changing(files_);
  std::vector<Entry> all;
  {
    const std::lock_guard lock(mutex_);
    all = std::exchange(entries_, {});
  }
  for (const Entry& entry : all) (void)os_.unlink(path_of(entry, entry.running > 0));
}

}  // namespace modelbroker
