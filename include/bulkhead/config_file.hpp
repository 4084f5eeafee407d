// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/base_executor.hpp>
#include <bulkhead/detail/json_keys.hpp>
#include <bulkhead/errors.hpp>
#include <bulkhead/executor_registry.hpp>

#include <boost/json/array.hpp>
#include <boost/json/error.hpp>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/stream_parser.hpp>
#include <boost/json/value.hpp>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

// Executors from a JSON file. Not part of bulkhead.hpp, since it needs Boost.JSON: link Boost::json, or include
// <boost/json/src.hpp> in one source file of the program.

namespace bulkhead {

namespace detail {

struct ConfiguredExecutor {
  std::string name;
  std::string type = "local";
  OptionMap options;
  std::vector<std::string> members;  // of a hybrid
};

inline std::string option_text(const std::string& place, const boost::json::value& value) {
  switch (value.kind()) {
    case boost::json::kind::string:
      return std::string(value.get_string());
    case boost::json::kind::bool_:
    case boost::json::kind::int64:
    case boost::json::kind::uint64:
      return boost::json::serialize(value);
    case boost::json::kind::array: {
      std::vector<std::string> names;
      for (const boost::json::value& name : value.get_array()) {
        if (!name.is_string()) throw std::invalid_argument(place + ": a list must be one of strings");
        names.emplace_back(name.get_string());
        if (names.back().find(',') != std::string::npos) {
          throw std::invalid_argument(place + ": '" + names.back() + "' has a comma, which separates names");
        }
      }
      return fmt::format("{}", fmt::join(names, ","));
    }
    default:
      throw std::invalid_argument(place + ": must be a string, a whole number, true, false, or a list of strings");
  }
}

inline std::vector<ConfiguredExecutor> parse_config(std::string_view text) {
  boost::json::value document;
  {
    boost::json::stream_parser parser;
    boost::json::error_code error;
    const std::size_t read = parser.write_some(text.data(), text.size(), error);
    if (!error && read == text.size()) parser.finish(error);
    if (error || read < text.size()) {
      const auto before = text.substr(0, read);
      const auto line_begin = before.rfind('\n') + 1;  // 0 if there is none
      throw std::invalid_argument(
          fmt::format("it is not JSON: line {}, column {}: {}", 1 + std::count(before.begin(), before.end(), '\n'),
                      1 + before.size() - line_begin, error ? error.message() : "something follows its end"));
    }
    document = parser.release();
  }
  if (const auto twice = TwiceGivenKey::find(text); !twice.empty()) {
    throw std::invalid_argument(fmt::format("\"{}\" is given twice", fmt::join(twice, "\": \"")));
  }
  const auto* top = document.if_object();
  const auto* section = top == nullptr ? nullptr : top->if_contains("executors");
  if (section == nullptr || !section->is_object()) {
    throw std::invalid_argument("it must be an object with an object \"executors\"");
  }
  if (top->size() != 1) throw std::invalid_argument("it must have \"executors\" and nothing else");
  std::vector<ConfiguredExecutor> configured;
  for (const auto& [key, value] : section->get_object()) {
    ConfiguredExecutor executor;
    executor.name = std::string(key);
    const std::string place = "executor '" + executor.name + "'";
    if (!value.is_object()) throw std::invalid_argument(place + ": must be an object of options");
    for (const auto& [option, setting] : value.get_object()) {
      const std::string name(option);
      if (name == "name") throw std::invalid_argument(place + ": its key is its name: it has no option 'name'");
      if (name == "type" && !setting.is_string()) throw std::invalid_argument(place + ": its type must be a string");
      std::string given = option_text(place + ": option '" + name + "'", setting);
      if (name == "type") {
        executor.type = std::move(given);
      } else {
        if (name == "executors") executor.members = parse_hybrid_options({{name, given}}).executors;
        executor.options.emplace(name, std::move(given));
      }
    }
    configured.push_back(std::move(executor));
  }
  return configured;
}

// Whoever is made of others comes after them.
inline void sort_by_members(std::vector<ConfiguredExecutor>& configured) {
  std::vector<ConfiguredExecutor> sorted;
  std::set<std::string> unsorted;
  for (const ConfiguredExecutor& executor : configured) unsorted.insert(executor.name);
  while (!configured.empty()) {
    const auto next = std::find_if(configured.begin(), configured.end(), [&](const ConfiguredExecutor& executor) {
      return std::none_of(executor.members.begin(), executor.members.end(),
                          [&](const std::string& member) { return unsorted.contains(member); });
    });
    if (next == configured.end()) {
      throw std::invalid_argument("executor '" + configured.front().name + "': is part of itself");
    }
    unsorted.erase(next->name);
    sorted.push_back(std::move(*next));
    configured.erase(next);
  }
  configured = std::move(sorted);
}

}  // namespace detail

/// Makes the executors that a JSON text describes, and gives them in the order of their making:
///
///     {"executors": {"images": {"type": "local", "max_workers": 4, "idle_timeout": "30s"},
///                    "files":  {"type": "thread", "max_threads": 8, "overload": "wait"},
///                    "both":   {"type": "hybrid", "executors": ["images", "files"]}}}
///
/// Each has a `type` ("local" if there is none) and that type's options as in OptionMap. All or none: if one cannot be
/// made, those that were made for this text are removed again.
/// Errors: `std::invalid_argument` that names the executor, the option, and what is known; those of `get_or_create`.
inline std::vector<std::shared_ptr<BaseExecutor>> from_config_text(ExecutorRegistry& registry, std::string_view text) {
  auto configured = detail::parse_config(text);
  detail::sort_by_members(configured);
  std::vector<std::shared_ptr<BaseExecutor>> executors;
  std::vector<std::string> added;
  try {
    for (const auto& executor : configured) {
      const bool is_new = !registry.contains(executor.name);
      try {
        executors.push_back(registry.get_or_create(executor.name, executor.type, executor.options));
      } catch (const std::invalid_argument& error) {
        throw std::invalid_argument("executor '" + executor.name + "': " + error.what());
      }
      if (is_new) added.push_back(executor.name);
    }
  } catch (...) {
    for (const std::string& name : added) registry.remove(name);
    throw;
  }
  return executors;
}

/// The same from a file. Errors: `std::system_error` if it cannot be read; `std::invalid_argument`, with the file's
/// name, for what cannot be in it, unknown types included; what a factory or `get_or_create` throws besides, as it is.
inline std::vector<std::shared_ptr<BaseExecutor>> from_config(ExecutorRegistry& registry,
                                                              const std::filesystem::path& path) {
  if (std::filesystem::is_directory(path)) {
    throw std::system_error(EISDIR, std::generic_category(), "cannot read " + path.string());
  }
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::system_error(errno, std::generic_category(), "cannot read " + path.string());
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  try {
    return from_config_text(registry, text);
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(path.string() + ": " + error.what());
  } catch (const UnknownExecutorTypeError& error) {
    throw std::invalid_argument(path.string() + ": " + error.what());
  }
}

}  // namespace bulkhead
