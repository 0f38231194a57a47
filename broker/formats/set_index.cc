#include "broker/formats/set_index.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "broker/formats/directory.h"
#include "broker/formats/text_of_file.h"
#include "shm/text.h"

namespace modelbroker {
namespace {

constexpr std::size_t kMostTensors = 1'000'000;
constexpr std::size_t kMaxDepth = 127;  // of objects and arrays in each other
constexpr std::size_t kLongestName = 255;
constexpr std::string_view kWeightMap = "weight_map";

bool is_plain(std::string_view name) {
  return !name.empty() && name.size() <= kLongestName && name != "." && name != ".." &&
         name.find('/') == std::string_view::npos && name.find('\0') == std::string_view::npos;
}

// Builds the map while nlohmann's parser walks the JSON: nothing else is kept.
class IndexSax : public JsonWalker {
 public:
  std::map<std::string, std::string> weight_map;
  bool has_map = false;
  Error problem{ErrorCode::kDataLoss, ""};

  bool null() { return other_value(); }
  bool boolean(bool) { return other_value(); }
  bool number_integer(number_integer_t) { return other_value(); }
  bool number_unsigned(number_unsigned_t) { return other_value(); }
  bool number_float(number_float_t, const string_t&) { return other_value(); }
  bool binary(binary_t&) { return other_value(); }

  bool string(string_t& value) {
    if (!in_map()) return other_value();
    if (!is_plain(value)) {
      return refuse(ErrorCode::kInvalidArgument, "names the file '" + printable(value, 80) + "' for tensor '" +
                                                     printable(key_, 80) +
                                                     "': the files of a set lie beside its index, by plain names");
    }
    if (weight_map.size() >= kMostTensors) return refuse(ErrorCode::kDataLoss, "names over 1000000 tensors");
    if (weight_map.emplace(key_, std::move(value)).second) return true;
    return refuse(ErrorCode::kDataLoss, "names tensor '" + printable(key_, 80) + "' twice");
  }

  bool key(string_t& value) {
    key_ = std::move(value);
    if (depth_ != 1 || key_ != kWeightMap) return true;
    return !std::exchange(has_map, true) || refuse(ErrorCode::kDataLoss, "has two weight_map");
  }

  bool start_object(std::size_t) {
    if (depth_ == 1 && key_ == kWeightMap) map_depth_ = 2;
    if (in_map()) return refuse(ErrorCode::kDataLoss, "has an object in its weight_map");
    return go_deeper();
  }
  bool end_object() {
    --depth_;
    if (depth_ < map_depth_) map_depth_ = 0;
    return true;
  }
  bool start_array(std::size_t) {
    if (depth_ == 0 || in_map() || (depth_ == 1 && key_ == kWeightMap)) return other_value();
    return go_deeper();
  }
  bool end_array() {
    --depth_;
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception& error) {
    return refuse(ErrorCode::kDataLoss,
                  "is not JSON at byte " + std::to_string(position) + " (" + printable(error.what(), 200) + ")");
  }

 private:
  [[nodiscard]] bool in_map() const { return map_depth_ != 0 && depth_ == map_depth_; }
  bool go_deeper() {
    if (++depth_ <= kMaxDepth) return true;
    return refuse(ErrorCode::kDataLoss, "nests over 127 objects and arrays");
  }
  // What is not a file's name.
  bool other_value() {
    if (depth_ == 0) return refuse(ErrorCode::kDataLoss, "is not a JSON object");
    if (depth_ == 1 && key_ == kWeightMap) return refuse(ErrorCode::kDataLoss, "has a weight_map that is no object");
    if (!in_map()) return true;
    return refuse(ErrorCode::kDataLoss, "has no file's name for tensor '" + printable(key_, 80) + "'");
  }
  bool refuse(ErrorCode code, const std::string& why) {
    problem = {code, why};
    return false;
  }

  std::size_t depth_ = 0, map_depth_ = 0;  // map_depth_: that of the weight_map's values, while it is open
  std::string key_;
};

Result<std::string> read_text(Os& os, int fd, const std::string& label) {
  MODELBROKER_ASSIGN(const FileIdentity source, identify(os, fd, label));
  if (source.size > SetIndex::kLargest) {
    return fail(ErrorCode::kResourceExhausted,
                "'" + label + "' has " + std::to_string(source.size) + " bytes; the index of a set has at most 64 MiB");
  }
  return text_of_file(os, fd, {0, source.size}, label);
}

}  // namespace

bool is_set_index(std::string_view path) { return path.ends_with(BlockSet::kIndexSuffix); }

Result<SetIndex> read_set_index(Os& os, int fd, const std::string& label) {
  MODELBROKER_ASSIGN(const std::string text, read_text(os, fd, label));
  const auto refuse = [&](ErrorCode code, const std::string& why) {
    return fail(code, "'" + label + "' is not the index of a sharded model: it " + why);
  };
  // The parser would take a zero byte for the end and look no further.
  if (text.find('\0') != std::string::npos) return refuse(ErrorCode::kDataLoss, "has a zero byte");
  IndexSax sax;
  if (!nlohmann::json::sax_parse(text, &sax)) return refuse(sax.problem.code, sax.problem.message);
  if (sax.weight_map.empty()) return refuse(ErrorCode::kDataLoss, "has no weight_map with a tensor");
  SetIndex index;
  for (const auto& [tensor, file] : sax.weight_map) index.files.push_back(file);
  std::ranges::sort(index.files);
  index.files.erase(std::unique(index.files.begin(), index.files.end()), index.files.end());
  if (index.files.size() > SetIndex::kMostFiles) {
    return refuse(ErrorCode::kInvalidArgument, "names " + std::to_string(index.files.size()) + " files; at most 1024");
  }
  for (const auto& [tensor, file] : sax.weight_map) {
    const auto at = std::ranges::lower_bound(index.files, file);
    index.tensors.emplace_hint(index.tensors.end(), tensor, static_cast<std::size_t>(at - index.files.begin()));
  }
  return index;
}

}  // namespace modelbroker
