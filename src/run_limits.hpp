// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <cstdint>

namespace bulkhead::detail {

// All times in nanoseconds of the steady clock; 0 means that there is none.

/// What ends a task before it ends itself.
struct RunLimits {
  std::uint64_t queue_end = 0;  ///< when it must have begun
  std::uint64_t timeout = 0;    ///< how long it may run
  std::uint64_t cpu = 0;        ///< how much CPU time its run may take
  std::uint64_t kill_at = 0;    ///< when it is killed since its caller has cancelled it
  std::uint64_t end = 0;        ///< when it must be over, whatever it does

  bool any() const noexcept { return (queue_end | timeout | cpu | kill_at | end) != 0; }
};

/// How far the task is.
struct RunState {
  bool begun = false;
  std::uint64_t begun_ns = 0;
  std::uint64_t cpu_used = 0;
};

enum class LimitPassed : std::uint8_t { none, queue, total, cancel, run, cpu };

struct LimitDecision {
  LimitPassed passed = LimitPassed::none;
  /// When to ask again; 0: no need.
  std::uint64_t look_again = 0;
};

/// Decides whether a limit has passed, or when it may have. `cpus`: how many the task's threads can use at once.
LimitDecision check_limits(const RunLimits& limits, const RunState& state, std::uint64_t now, unsigned cpus) noexcept;

}  // namespace bulkhead::detail
