// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <cstdint>
#include <string>

namespace bulkhead {

/// How far a task has come, as it says.
struct Progress {
  std::uint64_t done = 0;
  /// 0: it does not know.
  std::uint64_t total = 0;
  /// At most 200 bytes.
  std::string text;
};

}  // namespace bulkhead
