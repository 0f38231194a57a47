#include "broker/formats/other_formats.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

namespace modelbroker {
namespace {

constexpr std::uint64_t kLargestJson = 100'000'000;
constexpr std::size_t kTarMagicAt = 257;

constexpr std::string_view kWhiteSpace = " \t\r\n";

bool may_be_safetensors(std::string_view start) {
  std::uint64_t length = 0;
  if (start.size() <= sizeof length) return false;
  std::memcpy(&length, start.data(), sizeof length);
  const char first = start[sizeof length];
  return (first == '{' || kWhiteSpace.find(first) != std::string_view::npos) && length <= kLargestJson;
}

// ---- how a row's magic is looked for

using Match = bool (*)(std::string_view start, std::string_view magic);

bool bytes(std::string_view start, std::string_view magic) { return start.starts_with(magic); }

// Behind white space, in either case.
bool markup(std::string_view start, std::string_view magic) {
  const auto first = start.find_first_not_of(kWhiteSpace);
  if (first == std::string_view::npos) return false;
  start = start.substr(first, magic.size());
  return std::ranges::equal(start, magic, {},
                            [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
}

// No control characters, and none of the bytes that UTF-8 never has.
bool text(std::string_view start, std::string_view /*magic*/) {
  return !start.empty() && std::ranges::all_of(start, [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return (byte >= ' ' && byte != 0x7F && byte < 0xF8) || kWhiteSpace.find(c) != std::string_view::npos;
  });
}

bool json(std::string_view start, std::string_view magic) {
  return markup(start, "{") && text(start, "") && start.find(magic) != std::string_view::npos;
}

bool tar(std::string_view start, std::string_view magic) {
  return start.size() >= kTarMagicAt && start.substr(kTarMagicAt).starts_with(magic);
}

bool pickle(std::string_view start, std::string_view magic) {
  return start.starts_with(magic) && start.size() > 1 && start[1] >= 2 && start[1] <= 5;  // its protocol
}

// ---- the rows

struct Row {
  Match match;
  std::string_view magic;
  OtherFormat format;
};

constexpr OtherFormat kIndex{
    ErrorCode::kUnimplemented, "the JSON index of a model in several files",
    "beside its files it has a name that ends in .safetensors.index.json: load it by that one; "
    "an index of other files than safetensors is not read"};
constexpr OtherFormat kHtml{ErrorCode::kDataLoss, "an HTML page",
                            "the link that it was downloaded from leads to a page: download the file itself"};
constexpr OtherFormat kXml{
    ErrorCode::kDataLoss, "an XML document",
    "a server may have answered so in the file's place: look at it, and download the file again"};
constexpr std::string_view kFromTorch =
    "load it once by torch.load(path, weights_only=True) and save it by safetensors.torch.save_file()";

// The first that matches counts.
constexpr std::array kRows{
    Row{bytes,
        "version https://git-lfs",
        {ErrorCode::kDataLoss, "a Git LFS pointer, not the file that it stands for",
         "run `git lfs pull` in its repository, or download the file itself"}},
    Row{bytes,
        "# xet version",
        {ErrorCode::kDataLoss, "a Git Xet pointer, not the file that it stands for",
         "check it out again with git-xet installed, or download the file itself"}},
    Row{markup, "<!doctype html", kHtml},
    Row{markup, "<html", kHtml},
    Row{markup, "<?xml", kXml},
    Row{markup, "<error", kXml},
    Row{json, "\"weight_map\"", kIndex},
    Row{json, "\"total_size\"", kIndex},
    Row{json,
        "",
        {ErrorCode::kInvalidArgument, "a JSON file", "give the path of the .safetensors file that belongs to it"}},
    Row{bytes,
        "PK\x03\x04",
        {ErrorCode::kUnimplemented, "a zip archive, as PyTorch's .pt, .pth, .bin and .ckpt files are", kFromTorch}},
    Row{pickle,
        "\x80",
        {ErrorCode::kUnimplemented, "a Python pickle, as old PyTorch .bin and .pt files are", kFromTorch}},
    Row{bytes, "GGUF", {ErrorCode::kUnimplemented, "GGUF", "use the .safetensors files of the same model"}},
    Row{bytes,
        "\x89HDF\r\n\x1a\n",
        {ErrorCode::kUnimplemented, "HDF5, as Keras's .h5 files are",
         "load it once with the library that wrote it and save its arrays by safetensors.numpy.save_file()"}},
    Row{bytes,
        "\x93NUMPY",
        {ErrorCode::kUnimplemented, "a numpy array (.npy)", "save it by safetensors.numpy.save_file()"}},
    Row{bytes, "\x1f\x8b", {ErrorCode::kUnimplemented, "a gzip archive", "unpack it first"}},
    Row{tar, "ustar", {ErrorCode::kUnimplemented, "a tar archive", "unpack it first"}},
    Row{text,
        "",
        {ErrorCode::kDataLoss, "text",
         "a server may have answered so in the file's place: look at it, and download the file again"}},
};

}  // namespace

const OtherFormat* other_format(std::string_view start) noexcept {
  if (may_be_safetensors(start)) return nullptr;
  const auto* const row = std::ranges::find_if(kRows, [&](const Row& each) { return each.match(start, each.magic); });
  return row == kRows.end() ? nullptr : &row->format;
}

}  // namespace modelbroker
