// The broker as a service: the configuration read again, and what a service manager hears.
#include <time.h>

#include "broker/base/log.h"
#include "broker/base/sizes.h"
#include "broker/ram/room.h"
#include "broker/server/server.h"
#include "wire/frame.h"

namespace modelbroker {
namespace {

std::string monotonic_micros() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return std::to_string(static_cast<std::uint64_t>(now.tv_sec) * 1000000 +
                        static_cast<std::uint64_t>(now.tv_nsec) / 1000);
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text.append(text.empty() ? "" : ", ").append(name);
  return text;
}

}  // namespace

// The budget as configured, else what the machine has free now and what we hold already.
Result<std::uint64_t> budget_of(Os& os, const Config& config, std::uint64_t held) {
  MODELBROKER_TRY(check_room(os, config.ram_directory, config.ram_budget));
  if (config.ram_budget) return *config.ram_budget;
  MODELBROKER_ASSIGN(const MemoryFacts facts, read_memory_facts(os, config.ram_directory));
  return default_limit(facts, held);
}

void Server::announce_ready() {
  notifier_.send("READY=1\nSTATUS=serving " + endpoint_.broker() + ", budget " +
                 format_size(facts_->ram.budget.limit()));
}

// From a timer of the loop: a loop that hangs falls silent.
void Server::pat_watchdog() {
  const auto every = notifier_.watchdog();
  if (!every) return;
  notifier_.send("WATCHDOG=1");
  loop_->after(*every, [this] { pat_watchdog(); });
}

// Files are read on a job thread: a configuration on a network file system stops nobody.
void Server::reload() {
  if (!reload_) return log_warning("SIGHUP: there is no configuration to read again");
  if (reloading_) {
    reload_again_ = true;
    return;
  }
  reloading_ = true;
  notifier_.send("RELOADING=1\nMONOTONIC_USEC=" + monotonic_micros() + "\nSTATUS=reading the configuration again");
  const RamBlocks::Totals totals = facts_->ram.blocks.totals();
  const std::uint64_t being_made = facts_->ram.budget.loading().made;
  rooms_->jobs.run(
      [&os = facts_->env.os, reload = reload_, running = facts_->env.config,
       held = totals.made + totals.draining + facts_->ram.foreign.bytes +
              being_made]() -> Result<std::pair<Reloaded, std::uint64_t>> {
        MODELBROKER_ASSIGN(Reloaded fresh, reload(running));
        MODELBROKER_ASSIGN(const std::uint64_t limit, budget_of(os, fresh.config, held));
        return std::pair(std::move(fresh), limit);
      },
      [this](Result<std::pair<Reloaded, std::uint64_t>> fresh) {
        if (fresh) {
          take_over(std::move(fresh->first), fresh->second);
        } else {
          log_error("the configuration stays as it was: " + fresh.error().message);
        }
        announce_ready();
        reloading_ = false;
        if (std::exchange(reload_again_, false)) reload();
      });
}

void Server::take_over(Reloaded fresh, std::uint64_t limit) {
  facts_->env.config = std::move(fresh.config);
  facts_->ram.budget.set_limit(limit);
  rooms_->admission.limit_changed();
  rooms_->scrubber.look();
  set_log_level(facts_->env.config.log_level);
  set_log_format(facts_->env.config.log_format);
  log_info("configuration read again, budget " + format_size(limit) +
           (fresh.changed.empty() ? ", nothing else changed" : "; changed: " + joined(fresh.changed)));
  if (!fresh.need_restart.empty()) log_warning("needs a restart: " + joined(fresh.need_restart));
}

}  // namespace modelbroker
