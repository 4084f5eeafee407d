// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/common_options.hpp>
#include <bulkhead/detail/config.hpp>
#include <bulkhead/hybrid_executor.hpp>
#include <bulkhead/io_executor.hpp>
#include <bulkhead/local_executor.hpp>
#include <bulkhead/thread_executor.hpp>

#include <map>
#include <string>
#include <vector>

namespace bulkhead {

/// Options as text, by the names of the fields of the options structs: from a configuration file, say.
///
/// Values: numbers; sizes in bytes, also as `64KiB`, `16MiB`, `1GiB`; durations with their unit, `250ms`, `2s`, `5min`,
/// `1h`, `100us`, `10ns`; `true`, `yes`, `on`, `1` and their opposites; enumerators by their names. What has no text
/// (`initializer`, say) cannot be given so.
using OptionMap = std::map<std::string, std::string>;

/// Which executors a registry's hybrid is made of, by their names there, and its options. As text: `executors` with
/// commas between the names.
struct HybridConfig {
  std::vector<std::string> executors;
  HybridExecutorOptions options = {};

  bool operator==(const HybridConfig&) const = default;
};

// Each throws `std::invalid_argument` for an unknown option, with the known ones, and for a value that is none. Ranges
// are checked when the executor is made.
BULKHEAD_EXPORT CommonOptions parse_common_options(const OptionMap& map);
BULKHEAD_EXPORT LocalExecutorOptions parse_local_options(const OptionMap& map);
BULKHEAD_EXPORT ThreadExecutorOptions parse_thread_options(const OptionMap& map);
BULKHEAD_EXPORT IoExecutorOptions parse_io_options(const OptionMap& map);
BULKHEAD_EXPORT HybridConfig parse_hybrid_options(const OptionMap& map);

}  // namespace bulkhead
