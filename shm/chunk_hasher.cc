#include "shm/chunk_hasher.h"

#include <xxhash.h>

#include <new>

namespace modelbroker {
namespace {
XXH3_state_t* as_state(void* state) { return static_cast<XXH3_state_t*>(state); }
}  // namespace

ChunkHasher::ChunkHasher() : state_(XXH3_createState(), [](void* state) { XXH3_freeState(as_state(state)); }) {
  if (!state_) throw std::bad_alloc();
  reset();
}
void ChunkHasher::reset() noexcept { XXH3_64bits_reset(as_state(state_.get())); }
void ChunkHasher::update(std::span<const std::byte> bytes) noexcept {
  XXH3_64bits_update(as_state(state_.get()), bytes.data(), bytes.size());
}
std::uint64_t ChunkHasher::digest() const noexcept { return XXH3_64bits_digest(as_state(state_.get())); }

}  // namespace modelbroker
