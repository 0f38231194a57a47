#include "broker/models/default_name.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdio>
#include <span>
#include <string_view>
#include <vector>

#include "shm/block_format.h"
#include "shm/manifest.h"
#include "shm/text.h"

namespace modelbroker {
namespace {

constexpr std::size_t kMaxBytes = 255;
constexpr std::string_view kHubFolder = "models--";

// Stems that say nothing of the model: the libraries write them into a folder of its own.
constexpr std::array<std::string_view, 4> kUsualStems{"model", "pytorch_model", "diffusion_pytorch_model",
                                                      "adapter_model"};

// Folders of a pipeline's parts, as the diffusers and transformers libraries call them; "_2" and the like may follow.
constexpr std::array<std::string_view, 22> kComponents{"unet",           "vae",
                                                       "text_encoder",   "transformer",
                                                       "tokenizer",      "image_encoder",
                                                       "safety_checker", "controlnet",
                                                       "prior",          "decoder",
                                                       "encoder",        "movq",
                                                       "vqvae",          "vqgan",
                                                       "vocoder",        "feature_extractor",
                                                       "scheduler",      "projection_model",
                                                       "language_model", "image_processor",
                                                       "motion_adapter", "image_normalizer"};

bool is_digit(char c) { return c >= '0' && c <= '9'; }

std::vector<std::string> parts_of(const std::string& path) {
  std::vector<std::string> parts;
  for (std::size_t at = 0; at < path.size();) {
    const std::size_t end = std::min(path.find('/', at), path.size());
    std::string part = path.substr(at, end - at);
    if (!part.empty() && part != ".") parts.push_back(std::move(part));
    at = end + 1;
  }
  return parts;
}

std::string joined(std::span<const std::string> parts) {
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : "/") + part;
  return text;
}

// Without its suffix.
std::string stem_of(const std::string& file) {
  constexpr std::string_view kIndex = BlockSet::kIndexSuffix;
  if (file.size() > kIndex.size() && file.ends_with(kIndex)) return file.substr(0, file.size() - kIndex.size());
  const auto dot = file.rfind('.');
  return dot == std::string::npos || dot == 0 ? file : file.substr(0, dot);
}

// Takes "-00001-of-00002" off the end; false if it is not there.
bool take_part_number(std::string_view& text) {
  const auto digits_before = [](std::string_view whole, std::size_t end) {
    std::size_t begin = end;
    while (begin > 0 && is_digit(whole[begin - 1])) --begin;
    return begin;
  };
  constexpr std::string_view kOf = "-of-";
  const std::size_t count = digits_before(text, text.size());
  if (count == text.size() || count < kOf.size() || text.substr(count - kOf.size(), kOf.size()) != kOf) return false;
  const std::size_t end = count - kOf.size();
  const std::size_t number = digits_before(text, end);
  if (number == end || number == 0 || text[number - 1] != '-') return false;
  text = text.substr(0, number - 1);
  return true;
}

struct Stem {
  bool is_usual = false;
  bool is_part = false;  // one of several files
};

// "model", "model.fp16", "model-00001-of-00002", "model.fp16-00001-of-00002", "model-00001-of-00002.fp16".
Stem stem_kind(std::string_view stem) {
  Stem kind;
  kind.is_part = take_part_number(stem);
  stem = stem.substr(0, stem.find('.'));
  kind.is_part = take_part_number(stem) || kind.is_part;
  kind.is_usual = std::ranges::find(kUsualStems, stem) != kUsualStems.end();
  return kind;
}

bool is_component(std::string_view folder) {
  const auto line = folder.rfind('_');
  if (line != std::string_view::npos && line + 1 < folder.size() &&
      std::ranges::all_of(folder.substr(line + 1), is_digit)) {
    folder = folder.substr(0, line);
  }
  return std::ranges::find(kComponents, folder) != kComponents.end();
}

// ".../models--org--name/snapshots/<revision>/vae" gives "org/name/vae"; empty where no such cache is.
std::string name_in_hub(std::span<const std::string> folders) {
  for (std::size_t at = folders.size(); at-- > 0;) {
    const std::string& folder = folders[at];
    const bool is_hub = folder.size() > kHubFolder.size() && folder.starts_with(kHubFolder) &&
                        at + 2 < folders.size() && folders[at + 1] == "snapshots";
    if (!is_hub) continue;
    std::string name = folder.substr(kHubFolder.size());
    for (auto dashes = name.find("--"); dashes != std::string::npos; dashes = name.find("--", dashes)) {
      name.replace(dashes, 2, "/");
    }
    for (const std::string& inner : folders.subspan(at + 3)) name.append("/").append(inner);
    return name;
  }
  return {};
}

std::string name_of_folder(std::span<const std::string> folders) {
  if (std::string name = name_in_hub(folders); !name.empty()) return name;
  const bool is_part_of_pipeline = folders.size() > 1 && is_component(folders.back());
  return is_part_of_pipeline ? joined(folders.last(2)) : folders.back();
}

std::string cut(const std::string& text, std::size_t most) {
  if (text.size() <= most) return text;
  std::size_t end = most;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0U) == 0x80U) --end;  // not within a character
  return text.substr(0, end);
}

// What differs behind the cut differs in the digest.
std::string digest_of(const std::string& text) {
  std::array<char, 9> hex{};
  const std::uint64_t hash = hash64(std::as_bytes(std::span(text)));
  (void)std::snprintf(hex.data(), hex.size(), "%08x", static_cast<unsigned>(hash & 0xFFFFFFFFU));
  return hex.data();
}

std::string valid(const std::string& text) {
  std::string name;
  for (std::string part : parts_of(replace_unseen(text))) {
    if (part == "..") part = "__";
    name += (name.empty() ? "" : "/") + part;
  }
  if (name.empty()) return "_";
  return name.size() <= kMaxBytes ? name : with_suffix(name, "-" + digest_of(text));
}

}  // namespace

std::string default_name(const std::string& path) {
  const std::vector<std::string> parts = parts_of(path);
  if (parts.empty()) return "_";
  const std::string stem = stem_of(parts.back());
  const std::span<const std::string> folders = std::span(parts).first(parts.size() - 1);
  const Stem kind = stem_kind(stem);
  const bool is_nowhere = folders.empty() || std::ranges::find(folders, "..") != folders.end();
  if (!kind.is_usual || is_nowhere) return valid(stem);
  const std::string name = name_of_folder(folders);
  return valid(kind.is_part ? name + "/" + stem : name);
}

std::string with_suffix(const std::string& name, const std::string& suffix) {
  return cut(name, kMaxBytes - std::min(kMaxBytes, suffix.size())) + suffix;
}

}  // namespace modelbroker
