// Wire structs as JSON for --json, field by field: the names on the wire are the names in the output.
#pragma once

#include <nlohmann/json.hpp>

#include "wire/messages.h"

namespace modelbroker::cli {

using Json = nlohmann::ordered_json;

template <class T>
Json to_json(const T& value) {
  if constexpr (requires(const T& message) { T::fields(message, [](auto&&...) {}); }) {
    Json object = Json::object();
    T::fields(value, [&](const char* name, const auto& field, auto...) { object[name] = to_json(field); });
    return object;
  } else if constexpr (std::is_same_v<T, std::optional<double>>) {
    return value ? Json(*value) : Json(nullptr);
  } else if constexpr (requires { typename T::mapped_type; }) {
    Json object = Json::object();
    for (const auto& [key, element] : value) object[key] = to_json(element);
    return object;
  } else if constexpr (requires { typename T::value_type; } && !std::is_same_v<T, std::string>) {
    Json array = Json::array();
    for (const auto& element : value) array.push_back(to_json(element));
    return array;
  } else {
    return value;
  }
}

}  // namespace modelbroker::cli
