// Broker: a worker's connection to the broker of its host.
//
// It survives the broker's restart: leases are stated again in the background, and a call that was running is asked
// again. Threads: any may call; destroying it belongs to one, and weights then keep what they need. In a forked child
// the object goes on with a session of its own (call it once there before other threads do); weights attached before
// the fork stay mapped in both, as the parent's lease.
// Failure: unavailable (with the remedy) when no broker answers for 30 s or the timeout, deadline_exceeded when it
// takes longer than the timeout, else the error that the broker answered.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cpp_client/models.h"
#include "cpp_client/options.h"
#include "cpp_client/weights.h"
#include "shm/error.h"

namespace modelbroker {

namespace client {
class Link;
}

struct LoadOptions {
  std::string name{};  // "": the file's stem
  std::string type{};
  bool pin = false;                            // never evict it
  std::optional<double> keep_alive_seconds{};  // after its last use; below 0: for ever; nothing: the broker's default
  bool retry = false;                          // although the broker died twice in a row while it loaded this file
  Timeout timeout{0};                          // with one, a full broker lets us wait for room
};

struct UnloadOptions {
  bool wait = false;  // until the bytes are free
  Timeout timeout{30'000};
};

struct AttachOptions {
  Mode mode = Mode::kPrivate;
  Timeout timeout{0};
};

class Broker {
 public:
  // The broker of this user, else the system's.
  [[nodiscard]] static Result<Broker> connect(const ConnectOptions& options = {});
  Broker(Broker&&) noexcept;
  Broker& operator=(Broker&&) noexcept;
  ~Broker();

  // Loads a file, once for everybody; returns when its weights are in memory. Opened here, with this process's rights.
  [[nodiscard]] Result<Loaded> load(const std::string& path, const LoadOptions& options = {});
  // Withdraws a name; with the last one the block goes when nobody has it mapped.
  [[nodiscard]] Result<Unloaded> unload(const std::string& model, const UnloadOptions& options = {});
  // Maps a model's weights. `model`: a name, or a path (begins with "/", "./" or "../", or is an existing file with a
  // folder or suffix), which is loaded if it is not resident or has changed.
  [[nodiscard]] Result<Weights> attach(const std::string& model, const AttachOptions& options = {});

  [[nodiscard]] Result<std::vector<Model>> list();
  [[nodiscard]] Result<Status> status();
  [[nodiscard]] Result<void> pin(const std::string& model);
  [[nodiscard]] Result<void> unpin(const std::string& model);
  // Cancels a load that is running or waits for room; how many callers were told.
  [[nodiscard]] Result<std::uint64_t> cancel(const std::string& model);

  [[nodiscard]] std::string endpoint() const;  // "ipc://..."

 private:
  explicit Broker(std::shared_ptr<client::Link> link) noexcept;
  [[nodiscard]] Result<client::Link*> link();  // a fresh one in a forked child
  [[nodiscard]] Result<void> set_pinned(const std::string& model, bool pinned);
  std::shared_ptr<client::Link> link_;
};

}  // namespace modelbroker
