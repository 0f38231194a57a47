// How much a PyTorch file may ask of the program that reads it. Every number of that kind stands here.
//
// Honest files stay far below: a checkpoint of 100,000 tensors has a pickle of 30 MB and 2 million values.
#pragma once

#include <cstddef>
#include <cstdint>

namespace modelbroker::unpickle {

inline constexpr std::uint64_t kMaxPickleBytes = 64U << 20U;
inline constexpr std::uint64_t kMaxSmallRecordBytes = 64;  // byteorder, version
inline constexpr std::size_t kMaxValues = 4'000'000;
inline constexpr std::size_t kMaxElements = 16'000'000;  // of all lists, tuples and dictionaries together
inline constexpr std::size_t kMaxStack = 2'000'000;
inline constexpr std::size_t kMaxMarks = 10'000;
inline constexpr std::size_t kMaxMemo = 4'000'000;
inline constexpr std::uint64_t kMaxDecodedBytes = 64U << 20U;  // text that does not stand in the pickle as it is
inline constexpr std::size_t kMaxTensors = 1'000'000;
inline constexpr std::size_t kMaxDimensions = 64;
inline constexpr std::size_t kMaxGlobalBytes = 512;  // "module.name"

// Turning values into named tensors.
inline constexpr std::size_t kMaxNesting = 64;
inline constexpr std::size_t kMaxVisits = 8'000'000;
inline constexpr std::size_t kMaxTensorNameBytes = 4096;
inline constexpr std::uint64_t kMaxTensorNamesBytes = 64U << 20U;  // all together
inline constexpr std::size_t kMaxMetadataBytes = 1U << 20U;
inline constexpr std::size_t kMaxPlaceholders = 200;  // that an answer lists

inline constexpr std::uint64_t kMaxZipEntries = 1'000'000;
inline constexpr std::uint64_t kMaxZipDirectoryBytes = 64U << 20U;
inline constexpr std::size_t kMaxZipNameBytes = 1024;

}  // namespace modelbroker::unpickle
