// LoadNotes: which files are being loaded, written down for the broker that follows if this one dies of one.
//
// One empty file for each in `<run>/loads`, whose name says it all: made and removed in one step, whatever kills us.
// After one death in a load its file is loaded again as any other; after two in a row it is refused until the file is
// another, or somebody asks for it all the same. The end of a load, however it ends, strikes the note out.
// Threads: open() and strike_all() the loop's, the rest any. Failure: a note that cannot be written is logged once and
// left out: the load goes on.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "shm/error.h"
#include "shm/manifest.h"
#include "shm/os.h"

namespace modelbroker {

class LoadNotes {
 public:
  struct Source {
    FileIdentity identity;
    std::string path;
    bool is_label = false;  // the path, see GivenName
  };
  // A load that runs. Struck out when this is destroyed.
  class Note {
   public:
    Note(Note&& other) noexcept : notes_(std::exchange(other.notes_, nullptr)), id_(other.id_) {}
    Note& operator=(Note&&) = delete;
    ~Note() {
      if (notes_ != nullptr) notes_->end(id_, /*pause=*/false);
    }
    // It goes on later: what was noted before is so again.
    void pause() && { std::exchange(notes_, nullptr)->end(id_, /*pause=*/true); }

   private:
    friend class LoadNotes;
    Note(LoadNotes* notes, std::uint64_t id) noexcept : notes_(notes), id_(id) {}
    LoadNotes* notes_;
    std::uint64_t id_;
  };

  LoadNotes(Os& os, const std::string& run_directory) : os_(os), folder_(run_directory + "/loads") {}
  LoadNotes(const LoadNotes&) = delete;
  LoadNotes& operator=(const LoadNotes&) = delete;

  // Takes over what a broker that died has left; removes what is no note.
  [[nodiscard]] Result<void> open();
  // failed_precondition for a file that brokers die of.
  [[nodiscard]] Result<void> check(const Source& source);
  [[nodiscard]] Note write(const Source& source);
  // All of them: at a clean stop.
  void strike_all();

 private:
  struct Entry {
    std::uint64_t id = 0;
    std::uint64_t device = 0, inode = 0, size = 0;
    std::int64_t mtime_ns = 0;
    std::uint64_t path_hash = 0;  // 0: the path is a label
    std::uint64_t deaths = 0;     // in a row, while it was being loaded
    unsigned running = 0;         // loads
    std::string label{};          // the end of the path, for people
    [[nodiscard]] bool is(const Entry& other) const noexcept;
    [[nodiscard]] bool has_path_of(const Entry& other) const noexcept;
  };
  [[nodiscard]] static Entry entry_of(const Source& source);
  [[nodiscard]] static std::optional<Entry> read(std::string_view name);
  [[nodiscard]] std::string path_of(const Entry& entry, bool running) const;
  [[nodiscard]] Result<void> take_over(Entry entry, const std::string& name);
  [[nodiscard]] Result<void> remove(const std::string& path);
  void end(std::uint64_t id, bool pause);
  void make(const std::string& path);
  void failed(const std::string& path, Errno error);

  Os& os_;
  const std::string folder_;
  std::atomic<bool> told_failure_ = false;
  std::mutex files_;            // held while notes change, and may wait for a disk
  std::mutex mutex_;            // after files_; never held during a call of the system
  std::vector<Entry> entries_;  // guarded by mutex_, as what follows
  std::uint64_t next_id_ = 1;
};

}  // namespace modelbroker
