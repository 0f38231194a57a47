#include "cuda_ipc/device_layout.h"

#include <algorithm>

#include "shm/block_format.h"

namespace modelbroker {
namespace {

// Appends a run, or lengthens the last one where it goes on on both sides.
void add_run(std::vector<CopyRun>& runs, const CopyRun& run) {
  if (run.size == 0) return;
  if (!runs.empty()) {
    CopyRun& last = runs.back();
    if (last.source + last.size == run.source && last.target + last.size == run.target) {
      last.size += run.size;
      return;
    }
  }
  runs.push_back(run);
}

}  // namespace

DeviceLayout device_layout(const Manifest& manifest, std::uint64_t granularity) {
  DeviceLayout layout;
  layout.manifest = manifest;
  std::vector<TensorEntry>& tensors = layout.manifest.tensors;
  std::uint64_t used = 0;
  for (auto first = tensors.begin(); first != tensors.end();) {
    // Those that overlap `first`, or one that does, and so on: they cover all of `whole`.
    ByteRange whole{first->offset, first->size};
    auto last = std::next(first);
    for (; last != tensors.end() && last->offset < whole.end(); ++last) {
      whole.size = std::max(whole.end(), last->offset + last->size) - whole.offset;
    }
    const std::uint64_t target = round_up(used, kDeviceAlignment);
    add_run(layout.runs, {whole.offset, target, whole.size});
    for (; first != last; ++first) first->offset = target + (first->offset - whole.offset);
    used = target + whole.size;
  }
  layout.size = round_up(std::max<std::uint64_t>(used, 1), granularity);
  return layout;
}

}  // namespace modelbroker
