// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "support/processes.hpp"
#include "support/sanitizer.hpp"

#include <cstddef>
#include <filesystem>
#include <iterator>
#include <string>

namespace bulkhead::test::family_chaos {

// What this process has, and must not have more of after an episode than before.
struct Resources {
  std::size_t threads = 0;
  std::size_t processes = 0;
  std::size_t descriptors = 0;

  static Resources now() {
    const std::filesystem::directory_iterator tasks("/proc/self/task");
    const auto threads = static_cast<std::size_t>(std::distance(begin(tasks), end(tasks)));
#if WITH_THREAD_SANITIZER
    // It starts a symbolizer, with two pipes to it, when it first has something to look up.
    return {threads, 0, 0};
#else
    return {threads, descendants().size(), open_descriptors()};
#endif
  }
  bool operator==(const Resources&) const = default;
  std::string to_string() const {
    return std::to_string(threads) + " threads, " + std::to_string(processes) + " processes, " +
           std::to_string(descriptors) + " descriptors";
  }
};

}  // namespace bulkhead::test::family_chaos
