#include "wire/unpack.h"

#include <algorithm>
#include <memory>

#include "shm/text.h"
#include "wire/frame.h"

namespace modelbroker::wire {
namespace {

constexpr std::size_t kMostDepth = 8;
constexpr std::size_t kFewKeys = 16;     // compared with each other; more are sorted
constexpr std::size_t kSmallZone = 900;  // an allocation that malloc has at hand

// What msgpack allows and the protocol does not: the first that is found.
class Checker {
 public:
  bool check(const Object& object) {
    switch (object.type) {
      case msgpack::type::BIN:
      case msgpack::type::EXT:
        return refuse("binary and extension values are not part of the protocol");
      case msgpack::type::STR:
        return valid_utf8(text_of(object)) || no_text(text_of(object));
      case msgpack::type::ARRAY:
        return std::all_of(object.via.array.ptr, object.via.array.ptr + object.via.array.size,
                           [&](const Object& item) { return check(item); });
      case msgpack::type::MAP:
        return check_keys(object.via.map) &&
               std::all_of(object.via.map.ptr, object.via.map.ptr + object.via.map.size,
                           [&](const msgpack::object_kv& pair) { return check(pair.val); });
      default:
        return true;
    }
  }
  [[nodiscard]] const std::string& problem() const { return problem_; }

 private:
  bool refuse(std::string why) {
    problem_ = std::move(why);
    return false;
  }
  bool no_text(std::string_view text) {
    return refuse("'" + printable(text, 64) + "' is not UTF-8: rename the file, or choose another name");
  }
  bool twice(std::string_view key) { return refuse("key '" + printable(key, 64) + "' is there twice"); }

  bool check_keys(const msgpack::object_map& map) {
    for (std::uint32_t i = 0; i < map.size; ++i) {
      const Object& key = map.ptr[i].key;
      if (key.type != msgpack::type::STR) return refuse("a map's key is not a string");
      if (!check(key)) return false;
      if (map.size > kFewKeys) continue;
      for (std::uint32_t other = 0; other < i; ++other) {
        if (text_of(map.ptr[other].key) == text_of(key)) return twice(text_of(key));
      }
    }
    return map.size <= kFewKeys || check_many(map);
  }

  bool check_many(const msgpack::object_map& map) {
    std::vector<std::string_view> keys;
    keys.reserve(map.size);
    for (std::uint32_t i = 0; i < map.size; ++i) keys.push_back(text_of(map.ptr[i].key));
    std::ranges::sort(keys);
    const auto found = std::ranges::adjacent_find(keys);
    return found == keys.end() || twice(*found);
  }

  std::string problem_;
};

// Counts array items and map entries before anything is built, so that a bomb is refused unbuilt: msgpack's
// own limits hold for one container at a time.
struct ElementCounter : msgpack::null_visitor {
  explicit ElementCounter(std::size_t limit) : most(limit) {}
  bool start_array(std::uint32_t count) { return add(count); }
  bool start_map(std::uint32_t count) { return add(count); }
  bool add(std::uint32_t count) {
    elements += count;
    return elements <= most;
  }
  std::size_t most;
  std::size_t elements = 0;
};

tl::unexpected<Error> refused(std::string why) { return fail(ErrorCode::kInvalidArgument, std::move(why)); }

tl::unexpected<Error> too_many() {
  return refused("an array or map claims more elements than the message has bytes or the protocol's limits allow");
}

}  // namespace

Result<msgpack::object_handle> unpack_frame(std::string_view bytes, std::size_t limit, std::size_t most_elements) {
  if (bytes.size() > limit) return refused("the message is longer than " + std::to_string(limit) + " bytes");
  try {
    std::size_t consumed = 0;
    // No container has more elements than bytes that follow: so bounded, the whole of a short message has at most as
    // many as it has bytes, and as many again for each level that is never filled.
    const std::size_t most_in_one = std::min(most_elements, bytes.size());
    if (most_in_one * (kMostDepth + 1) > most_elements) {
      ElementCounter counter(most_elements);
      // Bytes that are no msgpack end the walk too: unpack() says why.
      (void)msgpack::parse(bytes.data(), bytes.size(), consumed, counter);
      if (counter.elements > most_elements) {
        return refused("the message has more than " + std::to_string(most_elements) + " elements");
      }
      consumed = 0;
    }
    // msgpack allocates 24 to 48 bytes an element before it has seen it, so the count is the bound.
    const msgpack::unpack_limit limits(most_in_one, most_in_one, limit, 0, 0, kMostDepth);
    auto zone = std::make_unique<msgpack::zone>(bytes.size() < kSmallZone / 2 ? kSmallZone : MSGPACK_ZONE_CHUNK_SIZE);
    const Object root = msgpack::unpack(*zone, bytes.data(), bytes.size(), consumed, nullptr, nullptr, limits);
    if (consumed != bytes.size()) return refused("there are bytes after the message's end");
    if (root.type != msgpack::type::MAP) return refused("the message is not a msgpack map");
    if (Checker checker; !checker.check(root)) return refused(checker.problem());
    return msgpack::object_handle(root, std::move(zone));
  } catch (const msgpack::array_size_overflow&) {
    return too_many();
  } catch (const msgpack::map_size_overflow&) {
    return too_many();
  } catch (const std::exception& error) {
    return refused(std::string("the message is not msgpack within the protocol's limits (") + error.what() + ")");
  }
}

}  // namespace modelbroker::wire
