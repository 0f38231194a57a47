#include "broker/cli/clean_instance.h"

#include "shm/block.h"

namespace modelbroker::cli {

Result<Cleaned> clean_instance(Os& os, const std::string& ram_directory, const std::string& instance, bool with_lock) {
  MODELBROKER_ASSIGN(BlockDirectory directory,
                     BlockDirectory::lock(os, ram_directory, instance, /*any_file_system=*/true));
  MODELBROKER_ASSIGN(auto listing, directory.list(os));
  for (const BlockName& name : listing.doubles) MODELBROKER_TRY(directory.remove_double(os, name));
  Cleaned cleaned;
  for (const BlockName& block : listing.blocks) {
    MODELBROKER_ASSIGN(const std::uint64_t held, directory.remove(os, block));
    cleaned.bytes += held;
    ++cleaned.blocks;
  }
  cleaned.foreign = std::move(listing.foreign);
  if (with_lock) directory.lock_file().undo(os);
  return cleaned;
}

}  // namespace modelbroker::cli
