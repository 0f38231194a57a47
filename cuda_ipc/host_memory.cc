#include "cuda_ipc/host_memory.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "cuda_ipc/memory_file.h"
#include "shm/block_format.h"

namespace modelbroker {
namespace {

// Not std::ranges::copy: g++ 12 makes a loop over bytes of it.
void copy(std::span<const std::byte> from, std::span<std::byte> into) {
  std::memcpy(into.data(), from.data(), from.size());
}

class HostMapping final : public DeviceMapping {
 public:
  explicit HostMapping(Mapping mapping)
      : DeviceMapping(reinterpret_cast<std::uint64_t>(mapping.bytes().data()), mapping.bytes().size()),
        mapping_(std::move(mapping)) {}

 private:
  Result<void> do_copy_out(std::uint64_t offset, std::span<std::byte> into) override {
    copy(mapping_.bytes().subspan(offset, into.size()), into);
    return {};
  }

  Mapping mapping_;
};

class HostMemory final : public DeviceMemory {
 public:
  HostMemory(Os& os, DeviceId id, std::uint64_t total)
      : os_(os),
        info_{std::move(id), "memory of this host, not a GPU", DeviceBackend::kHost, total, kHugePage, false},
        file_name_("modelbroker " + info_.id.text()) {}

  const DeviceInfo& info() const noexcept override { return info_; }
  Result<DeviceMemoryInfo> memory_info() override {
    free_unheld();
    return DeviceMemoryInfo{info_.total, info_.total - std::min(used_, info_.total)};
  }
  Result<std::unique_ptr<Allocation>> create(std::uint64_t bytes) override;
  Result<std::unique_ptr<Allocation>> adopt(const SharedMemory& shared, std::uint64_t bytes) override;
  Result<std::unique_ptr<DeviceMapping>> open(const SharedMemory& shared, std::uint64_t bytes) override {
    MODELBROKER_ASSIGN(const Fd* const fd, descriptor(shared));
    MODELBROKER_ASSIGN(Mapping mapping, MemoryFile::map(os_, *fd, file_name_, bytes));
    return std::make_unique<HostMapping>(std::move(mapping));
  }
  Result<std::unique_ptr<Pin>> pin(std::span<const std::byte> /*host*/) override { return std::make_unique<Pin>(); }
  Result<void> synchronise() override { return {}; }

 private:
  class Owned;

  [[nodiscard]] Result<const Fd*> descriptor(const SharedMemory& shared) const {
    if (const Fd* const fd = std::get_if<Fd>(&shared)) return fd;
    return fail(ErrorCode::kInvalidArgument,
                "memory of " + info_.id.text() + " is shared by descriptor, not by handle");
  }
  void let_go(MemoryFile file);
  void free_unheld();

  Os& os_;
  const DeviceInfo info_;
  const std::string file_name_;
  std::uint64_t used_ = 0;          // bytes of allocations and of let_go_
  std::vector<MemoryFile> let_go_;  // no allocation any more, but readers may still have them
};

class HostMemory::Owned final : public Allocation {
 public:
  Owned(HostMemory& memory, MemoryFile file, bool shared)
      : Allocation(file.bytes().size(), shared), memory_(memory), file_(std::move(file)) {
    memory_.used_ += size();
  }
  ~Owned() override { memory_.let_go(std::move(file_)); }

 private:
  Result<void> do_copy_out(std::uint64_t offset, std::span<std::byte> into) override {
    copy(file_.bytes().subspan(offset, into.size()), into);
    return {};
  }
  Result<void> do_copy_in(std::uint64_t offset, std::span<const std::byte> from) override {
    copy(from, file_.bytes().subspan(offset, from.size()));
    return {};
  }
  Result<SharedMemory> do_share() override {
    MODELBROKER_TRY(file_.seal(memory_.os_));
    MODELBROKER_ASSIGN(Fd reader, file_.open_for_reader(memory_.os_));
    return SharedMemory(std::move(reader));
  }

  HostMemory& memory_;
  MemoryFile file_;
};

Result<std::unique_ptr<Allocation>> HostMemory::create(std::uint64_t bytes) {
  if (bytes == 0) return fail(ErrorCode::kInvalidArgument, "an allocation on a device has at least one byte");
  MODELBROKER_ASSIGN(const DeviceMemoryInfo now, memory_info());
  if (bytes > round_down(now.free, kHugePage)) {
    return fail(ErrorCode::kResourceExhausted,
                info_.id.text() + " has " + std::to_string(now.free) + " of " + std::to_string(now.total) +
                    " bytes free, and " + std::to_string(bytes) + " are needed: unload what is on it, or enlarge it",
                {{"needed", bytes}, {"free", now.free}, {"total", now.total}});
  }
  MODELBROKER_ASSIGN(MemoryFile file, MemoryFile::create(os_, file_name_, round_up(bytes, kHugePage)));
  return std::make_unique<Owned>(*this, std::move(file), false);
}

Result<std::unique_ptr<Allocation>> HostMemory::adopt(const SharedMemory& shared, std::uint64_t bytes) {
  MODELBROKER_ASSIGN(const Fd* const fd, descriptor(shared));
  MODELBROKER_ASSIGN(MemoryFile file, MemoryFile::adopt(os_, *fd, file_name_, bytes));
  return std::make_unique<Owned>(*this, std::move(file), true);
}

// The file stays open until its last reader has closed it: only by a descriptor can the kernel be asked about that.
void HostMemory::let_go(MemoryFile file) {
  let_go_.push_back(std::move(file));
  free_unheld();
}

void HostMemory::free_unheld() {
  std::erase_if(let_go_, [this](const MemoryFile& file) {
    const auto alone = file.nobody_else_has_it(os_);
    const bool is_free = alone ? *alone : alone.error().code == ErrorCode::kUnimplemented;
    if (is_free) used_ -= file.bytes().size();
    return is_free;
  });
}

}  // namespace

std::unique_ptr<DeviceMemory> make_host_memory(Os& os, DeviceId id, std::uint64_t total) {
  return std::make_unique<HostMemory>(os, std::move(id), total);
}

}  // namespace modelbroker
