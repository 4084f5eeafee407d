// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/detail/config.hpp>

#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>

namespace bulkhead {

/// What becomes of runs of a schedule that could not begin in time: the program was late or stopped, or the run before
/// was not over.
enum class MissedRuns : std::uint8_t {
  skip,      ///< They are left out.
  run_once,  ///< One run, as soon as possible, stands for all that were missed.
  run_all    ///< All are made up for, as soon as possible, at most `ScheduleOptions::most_made_up` at a time.
};

/// How `submit_every` repeats a task.
struct ScheduleOptions {
  /// How long before the first run. Empty: one period. Not negative.
  std::optional<std::chrono::nanoseconds> first = std::nullopt;
  /// What becomes of runs that were missed.
  MissedRuns missed = MissedRuns::skip;
  /// How late a run may begin without counting as missed. Empty: until the next is due. More than zero.
  std::optional<std::chrono::nanoseconds> grace = std::nullopt;
  /// Whether a run may begin while another is not over.
  bool overlap = false;
  /// It ends after so many runs; 0: never.
  std::uint64_t max_runs = 0;
  /// With `run_all`: how many missed runs are remembered at most; the oldest beyond them are left out. At least 1.
  std::uint64_t most_made_up = 1000;
  /// Called with what a run failed with, refusals included, on the executor's Asio executor. What it throws leaves the
  /// event loop's `run`, as from every handler; the schedule goes on.
  std::function<void(const std::exception_ptr&)> on_error = nullptr;
};

namespace detail {
class RepeatedRuns;
}

/// What `submit_every` gives. Copyable; dropping it drops nothing: a schedule ends by `cancel`, after `max_runs`, or
/// with its executor. While it goes on it keeps the Asio context at work.
///
/// Thread safety: shared objects: safe. It may outlive the executor.
class BULKHEAD_EXPORT Schedule {
 public:
  /// No schedule: it is not active, and has had no runs.
  Schedule() noexcept = default;
  /// No further run begins; one that is under way goes on.
  void cancel();
  bool active() const;
  /// Runs that were submitted.
  std::uint64_t runs() const;
  /// Runs that were left out.
  std::uint64_t missed() const;
  /// Runs that failed or were refused.
  std::uint64_t failures() const;
  /// What the last of them failed with; null if none has.
  std::exception_ptr last_error() const;
  /// When the next run is due; empty if there is none.
  std::optional<std::chrono::steady_clock::time_point> next() const;

  /// For the library.
  explicit Schedule(std::shared_ptr<detail::RepeatedRuns> runs) noexcept;

 private:
  std::shared_ptr<detail::RepeatedRuns> runs_;
};

}  // namespace bulkhead
