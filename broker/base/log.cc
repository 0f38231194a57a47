#include "broker/base/log.h"

#include <poll.h>
#include <signal.h>
#include <spdlog/async.h>
#include <spdlog/sinks/base_sink.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <mutex>

#include "shm/text.h"

namespace modelbroker {
namespace {

constexpr std::size_t kQueue = 2048;  // lines that wait for a reader
constexpr std::chrono::seconds kPatience{2};

std::string json_text(std::string_view text) {
  std::string out;
  for (const char c : printable(text, 1 << 16)) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out;
}

// Writes with write(2): stdio's lock would be held by a thread that waits for a reader.
class StderrSink final : public spdlog::sinks::base_sink<std::mutex> {
 public:
  StderrSink() : colours_(::isatty(STDERR_FILENO) == 1) { set_pattern("%Y-%m-%d %H:%M:%S.%e %^%-7l%$ %v"); }
  void json(bool on) { json_ = on; }
  // From now on a line may wait for its reader: it is the log thread that waits.
  void may_wait(std::shared_ptr<spdlog::details::thread_pool> pool) {
    const std::scoped_lock lock(mutex_);
    pool_ = std::move(pool);
  }
  [[nodiscard]] std::uint64_t flushes() {
    const std::scoped_lock lock(flush_mutex_);
    return flushes_;
  }
  void wait_for_flush(std::uint64_t after) {
    std::unique_lock lock(flush_mutex_);
    flushed_.wait_for(lock, kPatience, [&] { return flushes_ > after; });
  }

 private:
  void sink_it_(const spdlog::details::log_msg& message) override {
    const std::uint64_t overrun = pool_ ? pool_->overrun_counter() : 0;
    if (const std::uint64_t lost = unwritten_ + overrun - told_overrun_; lost > 0) {
      const std::string text = std::to_string(lost) + " log lines were dropped: they could not be written";
      const spdlog::details::log_msg notice(message.logger_name, spdlog::level::warn, text);
      if (!write(line(notice))) {
        ++unwritten_;
        return;
      }
      unwritten_ = 0;
      told_overrun_ = overrun;
    }
    if (!write(line(message))) ++unwritten_;
  }
  void flush_() override {
    const std::scoped_lock lock(flush_mutex_);
    ++flushes_;
    flushed_.notify_all();
  }

  std::string line(const spdlog::details::log_msg& message) {
    const std::string_view level(spdlog::level::to_string_view(message.level).data(),
                                 spdlog::level::to_string_view(message.level).size());
    const std::string_view text(message.payload.data(), message.payload.size());
    if (json_) {
      return "{\"time\":\"" + utc(message.time) + "\",\"level\":\"" + std::string(level) +
             "\",\"pid\":" + std::to_string(::getpid()) + ",\"message\":\"" + json_text(text) + "\"}\n";
    }
    spdlog::memory_buf_t buffer;
    formatter_->format(message, buffer);
    std::string formatted(buffer.data(), buffer.size());
    if (colours_ && message.level >= spdlog::level::warn) {
      formatted.insert(message.color_range_end, "\033[0m");
      formatted.insert(message.color_range_start, message.level == spdlog::level::warn ? "\033[33m" : "\033[31m");
    }
    return formatted;
  }
  static std::string utc(spdlog::log_clock::time_point when) {
    using std::chrono::duration_cast, std::chrono::milliseconds, std::chrono::seconds;
    const auto since = duration_cast<milliseconds>(when.time_since_epoch());
    const std::time_t whole = duration_cast<seconds>(since).count();
    std::tm parts{};
    ::gmtime_r(&whole, &parts);
    return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z", parts.tm_year + 1900, parts.tm_mon + 1,
                       parts.tm_mday, parts.tm_hour, parts.tm_min, parts.tm_sec, since.count() % 1000);
  }

  // False if the line, or its end, was not written.
  bool write(const std::string& text) {
    std::string_view rest = text;
    if (torn_) (void)!::write(STDERR_FILENO, "\n", 1);
    while (!rest.empty()) {
      pollfd writable{STDERR_FILENO, POLLOUT, 0};
      if (::poll(&writable, 1, pool_ ? -1 : 0) == 0) break;
      const ssize_t wrote = ::write(STDERR_FILENO, rest.data(), rest.size());
      if (wrote < 0 && (errno == EINTR || (errno == EAGAIN && pool_))) continue;
      if (wrote <= 0) break;
      rest.remove_prefix(static_cast<std::size_t>(wrote));
    }
    torn_ = !rest.empty() && rest.size() < text.size();
    return rest.empty();
  }

  const bool colours_;
  std::atomic<bool> json_ = false;
  // Guarded by base_sink's mutex_:
  std::shared_ptr<spdlog::details::thread_pool> pool_;
  std::uint64_t unwritten_ = 0, told_overrun_ = 0;
  bool torn_ = false;

  std::mutex flush_mutex_;
  std::condition_variable flushed_;
  std::uint64_t flushes_ = 0;  // guarded by flush_mutex_
};

// Never destroyed: its thread may wait for a reader for ever, and nobody must wait for it.
struct Log {
  std::shared_ptr<StderrSink> sink = std::make_shared<StderrSink>();
  std::shared_ptr<spdlog::logger> direct = std::make_shared<spdlog::logger>("modelbroker", sink);
  std::shared_ptr<spdlog::details::thread_pool> pool;
  std::shared_ptr<spdlog::logger> queued;
  std::atomic<spdlog::logger*> current = direct.get();

  static Log& get() {
    static auto* const log = new Log;
    return *log;
  }
};

spdlog::logger& logger() { return *Log::get().current; }

// Signals are for the loop: a thread that could take one would die of it.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsBlocked() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_{};
};

}  // namespace

void start_log_thread() {
  Log& log = Log::get();
  if (log.queued) return;
  try {
    const SignalsBlocked blocked;
    log.pool = std::make_shared<spdlog::details::thread_pool>(kQueue, 1U);
  } catch (const std::exception&) {
    return log_warning("no thread for the log: lines that cannot be written at once are dropped");
  }
  log.queued = std::make_shared<spdlog::async_logger>("modelbroker", log.sink, log.pool,
                                                      spdlog::async_overflow_policy::overrun_oldest);
  log.queued->set_level(log.direct->level());
  log.sink->may_wait(log.pool);
  log.current = log.queued.get();
}

void flush_log() {
  Log& log = Log::get();
  if (!log.queued) return;
  const std::uint64_t before = log.sink->flushes();
  log.queued->flush();
  log.sink->wait_for_flush(before);
}

void set_log_level(const std::string& level) { logger().set_level(spdlog::level::from_str(level)); }
void set_log_format(const std::string& format) { Log::get().sink->json(format == "json"); }
void log_debug(std::string_view text) { logger().debug("{}", text); }
void log_info(std::string_view text) { logger().info("{}", text); }
void log_warning(std::string_view text) { logger().warn("{}", text); }
void log_error(std::string_view text) { logger().error("{}", text); }

}  // namespace modelbroker
