// SPDX-License-Identifier: BSL-1.0
#include "run_times.hpp"

#include <algorithm>

namespace bulkhead::detail {

// Sorts what has become due, or too late, since the last look.
void RunTimes::note_due(Time now) {
  std::uint64_t too_late = 0;
  if (in_time_ && now > *in_time_ + rules_.grace) {
    in_time_.reset();
    ++too_late;
  }
  if (now >= next_due_) {
    const auto periods = static_cast<std::uint64_t>((now - next_due_) / rules_.period);
    const Time latest = next_due_ + rules_.period * static_cast<std::int64_t>(periods);
    // One that waits is overtaken by the next.
    if (in_time_) ++too_late;
    too_late += periods;
    in_time_.reset();
    if (now <= latest + rules_.grace) {
      in_time_ = latest;
    } else {
      ++too_late;
    }
    next_due_ = latest + rules_.period;
  }
  switch (rules_.missed) {
    case MissedRuns::skip:
      missed_ += too_late;
      break;
    case MissedRuns::run_once: {
      // All of them are one run, and one that is in time stands for them, too.
      const std::uint64_t together = to_make_up_ + too_late;
      to_make_up_ = together > 0 && !in_time_ ? 1 : 0;
      missed_ += together - to_make_up_;
      break;
    }
    case MissedRuns::run_all: {
      const std::uint64_t together = to_make_up_ + too_late;
      to_make_up_ = std::min(together, rules_.most_made_up);
      missed_ += together - to_make_up_;
      break;
    }
  }
}

std::uint64_t RunTimes::runs_to_begin(Time now) {
  if (over()) return 0;
  note_due(now);
  std::uint64_t wanted = to_make_up_ + (in_time_ ? 1 : 0);
  if (!rules_.overlap) wanted = under_way_ > 0 ? 0 : std::min<std::uint64_t>(wanted, 1);
  if (rules_.max_runs != 0) wanted = std::min(wanted, rules_.max_runs - begun_);
  for (std::uint64_t i = 0; i < wanted; ++i) {
    // The oldest first.
    if (to_make_up_ > 0) {
      --to_make_up_;
    } else {
      in_time_.reset();
    }
  }
  begun_ += wanted;
  under_way_ += wanted;
  return wanted;
}

std::optional<RunTimes::Time> RunTimes::next() const noexcept {
  // While a run is under way that is alone, its end is what to wait for.
  if (!rules_.overlap && under_way_ > 0) return std::nullopt;
  return next_due();
}

std::optional<RunTimes::Time> RunTimes::next_due() const noexcept {
  if (over()) return std::nullopt;
  return next_due_;
}

}  // namespace bulkhead::detail
