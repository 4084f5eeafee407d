// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/schedule.hpp>

#include <chrono>
#include <cstdint>
#include <optional>

namespace bulkhead::detail {

/// Decides when the runs of a schedule begin, and what becomes of those that are missed. Time is an argument. Not
/// thread-safe.
///
/// A run is due at `first + n * period`. It is missed if it has not begun within the grace after that.
class RunTimes {
 public:
  using Time = std::chrono::nanoseconds;  // since an epoch of the caller's choice

  struct Rules {
    Time period{1};
    MissedRuns missed = MissedRuns::skip;
    Time grace{1};
    bool overlap = false;
    std::uint64_t max_runs = 0;
    std::uint64_t most_made_up = 1000;
  };

  RunTimes(Rules rules, Time first) : rules_(rules), next_due_(first) {}

  /// How many runs begin now: ask at `next()` and whenever a run has ended. They count as under way until `run_ended`.
  std::uint64_t runs_to_begin(Time now);
  void run_ended() noexcept { --under_way_; }
  /// Whether a run's end may be what the next one waits for.
  bool wait_for_each_other() const noexcept { return !rules_.overlap; }
  /// One that was to begin does not.
  void take_back_run() noexcept {
    --under_way_;
    --begun_;
  }
  /// Sorts what has become due, or too late, since the last look: for `missed`.
  void look(Time now) {
    if (!over()) note_due(now);
  }

  /// When to ask again; empty: when a run has ended, or never.
  std::optional<Time> next() const noexcept;
  /// When the next run is due, whether or not another is under way; empty if there is none.
  std::optional<Time> next_due() const noexcept;
  bool over() const noexcept { return rules_.max_runs != 0 && begun_ >= rules_.max_runs; }
  std::uint64_t begun() const noexcept { return begun_; }
  std::uint64_t missed() const noexcept { return missed_; }

 private:
  void note_due(Time now);

  Rules rules_;
  Time next_due_;
  /// Due and not begun: at most one that is in time, and what is to be made up for.
  std::optional<Time> in_time_;
  std::uint64_t to_make_up_ = 0;
  std::uint64_t under_way_ = 0;
  std::uint64_t begun_ = 0;
  std::uint64_t missed_ = 0;
};

}  // namespace bulkhead::detail
