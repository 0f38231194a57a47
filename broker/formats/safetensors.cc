// Rules: https://github.com/safetensors/safetensors (README, "Format"; lib.rs, Metadata::validate).
#include <algorithm>
#include <array>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "broker/formats/directory.h"
#include "broker/formats/text_of_file.h"
#include "shm/dtype.h"

namespace modelbroker {
namespace {

constexpr std::uint64_t kPrefix = 8;
constexpr std::uint64_t kLargestHeader = 100'000'000;
constexpr std::size_t kMostRank = 64;
constexpr std::size_t kMaxDepth = 127;  // of objects and arrays in each other: the reference stops there too
constexpr std::size_t kShownName = 80;
constexpr std::size_t kShownReason = 200;
constexpr std::string_view kMetadataKey = "__metadata__";

// Text out of the file, fit for a message: the file may be anything, a message is UTF-8 and short.
std::string shown(std::string_view text, std::size_t most) {
  std::string out;
  for (const char c : text.substr(0, most)) out += c >= 0x20 && c < 0x7F ? c : '?';
  return text.size() > most ? out + "..." : out;
}

std::string in_quotes(std::string_view name) { return "'" + shown(name, kShownName) + "'"; }

// Takes the header apart while nlohmann's parser walks it: nothing but the tensors is ever built.
// Every event returns false at the first thing that the format does not allow.
class HeaderSax : public JsonWalker {
 public:
  std::vector<TensorEntry> tensors;
  std::map<std::string, std::string> metadata;
  std::string problem;

  bool null() {
    // The reference writes and reads "no metadata" so.
    if (at_ == At::kTop && entry_.name == kMetadataKey) return true;
    return other_value("null");
  }
  bool boolean(bool) { return other_value("a boolean"); }
  bool number_integer(number_integer_t) { return other_value("a negative number"); }
  bool number_float(number_float_t, const string_t&) { return other_value("a number that is not an integer"); }
  bool binary(binary_t&) { return other_value("binary"); }

  bool number_unsigned(number_unsigned_t value) {
    if (at_ == At::kShape) {
      if (entry_.shape.size() == kMostRank)
        return refuse("tensor " + in_quotes(entry_.name) + " has over 64 dimensions");
      entry_.shape.push_back(value);
      return true;
    }
    if (at_ == At::kOffsets) {
      if (offsets_seen_ < offsets_.size()) offsets_[offsets_seen_] = value;
      ++offsets_seen_;
      return true;
    }
    return other_value("a number");
  }

  bool string(string_t& value) {
    if (at_ == At::kMetadata) {
      metadata[key_] = std::move(value);
      return true;
    }
    if (at_ == At::kTensor && field_ == Field::kDtype) {
      entry_.dtype = std::move(value);
      return true;
    }
    return other_value("a string");
  }

  bool start_object(std::size_t) {
    if (!go_deeper()) return false;
    if (in_extra_field()) return true;
    if (at_ == At::kStart) {
      at_ = At::kTop;
      return true;
    }
    if (at_ != At::kTop) return refuse_value("an object");
    keys_.clear();
    if (entry_.name == kMetadataKey) {
      at_ = At::kMetadata;
      return true;
    }
    at_ = At::kTensor;
    entry_.dtype.clear();
    entry_.shape.clear();
    offsets_seen_ = 0;
    return true;
  }

  bool key(string_t& value) {
    if (at_ == At::kTop) {
      if (!names_.insert(value).second) return refuse("the name " + in_quotes(value) + " stands twice");
      entry_.name = std::move(value);
      return true;
    }
    if (in_extra_field() && depth_ > kTensorDepth) return true;  // a key inside its value
    if (at_ == At::kTensor) {
      field_ = field_of(value);
      if (field_ == Field::kExtra) return true;
    }
    if (!keys_.insert(value).second) return refuse(where() + " has the key " + in_quotes(value) + " twice");
    key_ = std::move(value);
    return true;
  }

  bool end_object() {
    --depth_;
    if (in_extra_field() && depth_ >= kTensorDepth) return true;
    if (at_ == At::kTensor) {
      at_ = At::kTop;
      return take_tensor();
    }
    at_ = at_ == At::kMetadata ? At::kTop : At::kEnd;
    return true;
  }

  bool start_array(std::size_t) {
    if (!go_deeper()) return false;
    if (in_extra_field()) return true;
    if (at_ == At::kTensor && field_ == Field::kShape) {
      at_ = At::kShape;
      return true;
    }
    if (at_ == At::kTensor && field_ == Field::kOffsets) {
      at_ = At::kOffsets;
      return true;
    }
    return refuse_value("an array");
  }

  bool end_array() {
    --depth_;
    at_ = At::kTensor;  // the only place where an array may stand
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception& error) {
    return refuse("its header is not JSON at byte " + std::to_string(kPrefix + position) + " (" +
                  shown(error.what(), kShownReason) + ")");
  }

 private:
  enum class At : std::uint8_t { kStart, kTop, kMetadata, kTensor, kShape, kOffsets, kEnd };
  // kExtra: of somebody's own beside the format's three; its value is passed over, as the reference does.
  enum class Field : std::uint8_t { kDtype, kShape, kOffsets, kExtra };
  static constexpr std::size_t kTensorDepth = 2;  // the header's object and the tensor's

  static Field field_of(std::string_view key) {
    if (key == "dtype") return Field::kDtype;
    if (key == "shape") return Field::kShape;
    return key == "data_offsets" ? Field::kOffsets : Field::kExtra;
  }
  [[nodiscard]] bool in_extra_field() const { return at_ == At::kTensor && field_ == Field::kExtra; }

  bool go_deeper() {
    if (++depth_ <= kMaxDepth) return true;
    return refuse("its header nests over " + std::to_string(kMaxDepth) + " objects and arrays");
  }

  bool refuse(std::string why) {
    problem = std::move(why);
    return false;
  }
  bool other_value(const std::string& what) { return in_extra_field() || refuse_value(what); }
  bool refuse_value(const std::string& what) {
    if (at_ == At::kTensor || at_ == At::kMetadata) return refuse(where() + ": " + in_quotes(key_) + " is " + what);
    return refuse(where() + " is or has " + what);
  }
  [[nodiscard]] std::string where() const {
    if (at_ == At::kStart) return "its header";
    if (at_ == At::kMetadata || entry_.name == kMetadataKey) return std::string(kMetadataKey);
    return "tensor " + in_quotes(entry_.name);
  }

  bool take_tensor() {
    for (const char* const field : {"dtype", "shape", "data_offsets"}) {
      if (!keys_.contains(field)) return refuse("tensor " + in_quotes(entry_.name) + " has no " + field);
    }
    if (offsets_seen_ != offsets_.size() || offsets_[1] < offsets_[0]) {
      return refuse("tensor " + in_quotes(entry_.name) + " has data_offsets that are no range");
    }
    entry_.offset = offsets_[0];
    entry_.size = offsets_[1] - offsets_[0];
    if (const auto fits = check_tensor_size(entry_.dtype, entry_.shape, entry_.size); !fits) {
      return refuse("tensor " + in_quotes(entry_.name) + ": " + shown(fits.error().message, kShownReason));
    }
    tensors.push_back(entry_);
    return true;
  }

  At at_ = At::kStart;
  std::size_t depth_ = 0;
  Field field_ = Field::kExtra;  // of the tensor that is open
  std::string key_;
  std::set<std::string> keys_;  // of the object that is open below the top, without extra fields
  std::set<std::string> names_;
  TensorEntry entry_;
  std::array<std::uint64_t, 2> offsets_{};
  std::size_t offsets_seen_ = 0;
};

// The ranges must cover the data exactly: no hole, no overlap, no byte left.
Result<void> check_tiling(std::vector<TensorEntry>& tensors, std::uint64_t data_size, const std::string& label) {
  std::ranges::sort(tensors, [](const TensorEntry& a, const TensorEntry& b) {
    return std::pair(a.offset, a.size) < std::pair(b.offset, b.size);
  });
  std::uint64_t end = 0;
  for (const TensorEntry& tensor : tensors) {
    if (tensor.offset != end) {
      return fail(ErrorCode::kDataLoss, "'" + label + "' is damaged: tensor " + in_quotes(tensor.name) + " begins at " +
                                            std::to_string(tensor.offset) + " of the data, the one before it ends at " +
                                            std::to_string(end));
    }
    end += tensor.size;
  }
  if (end == data_size) return {};
  if (end > data_size) {
    return fail(ErrorCode::kDataLoss, "'" + label + "' is truncated: its header promises " + std::to_string(end) +
                                          " bytes of data, the file has " + std::to_string(data_size) +
                                          ": copy or download it again");
  }
  return fail(ErrorCode::kDataLoss,
              "'" + label + "' is damaged: " + std::to_string(data_size - end) + " bytes follow the last tensor");
}

Result<std::string> read_header(Os& os, int fd, const std::string& label, const FileIdentity& source) {
  const auto damaged = [&](const std::string& why) {
    return fail(ErrorCode::kDataLoss, "'" + label + "' is not a whole safetensors file: " + why);
  };
  if (source.size < kPrefix) return damaged("it has " + std::to_string(source.size) + " bytes");
  std::uint64_t length = 0;
  const auto prefix = os.pread(fd, std::as_writable_bytes(std::span(&length, 1)), 0);
  if (!prefix) return fail_errno(prefix.error().number, "reading '" + label + "'");
  if (*prefix != kPrefix) return damaged("it ends in its first bytes");
  if (length > kLargestHeader) {
    return damaged("its first 8 bytes give the header " + std::to_string(length) + " bytes; at most 100000000");
  }
  if (length > source.size - kPrefix) {
    return damaged("its header should have " + std::to_string(length) + " bytes, the file has " +
                   std::to_string(source.size));
  }
  MODELBROKER_ASSIGN(std::string text, text_of_file(os, fd, {kPrefix, length}, label));
  if (text.size() < length) return damaged("it ends inside its header");
  const auto first = text.find_first_not_of(" \t\r\n");  // none by the format's text; the reference passes it over
  if (first == std::string::npos || text[first] != '{') return damaged("its header does not begin with '{'");
  // The parser would take a zero byte for the end and look no further.
  if (text.find('\0') != std::string::npos) return damaged("its header has a zero byte");
  return text;
}

}  // namespace

Result<Directory> read_safetensors_directory(Os& os, int fd, const std::string& label, const FileIdentity& source) {
  MODELBROKER_ASSIGN(const std::string text, read_header(os, fd, label, source));
  HeaderSax sax;
  if (!nlohmann::json::sax_parse(text, &sax)) return fail(ErrorCode::kDataLoss, "'" + label + "': " + sax.problem);
  Directory directory;
  directory.format = "safetensors";
  directory.source = source;
  directory.payload.offset = kPrefix + text.size();
  directory.payload.size = source.size - directory.payload.offset;
  directory.tensors = std::move(sax.tensors);
  directory.metadata = std::move(sax.metadata);
  MODELBROKER_TRY(check_tiling(directory.tensors, directory.payload.size, label));
  return directory;
}

}  // namespace modelbroker
