// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <algorithm>
#include <chrono>
#include <optional>

namespace bulkhead::detail {

/// The end of a time that begins when this is made, of which several may each be given what is left. Without a timeout
/// it never comes.
class Deadline {
 public:
  explicit Deadline(std::optional<std::chrono::nanoseconds> timeout) {
    // A century is for ever, and can be added to any time of the clock.
    if (timeout) end_ = Clock::now() + std::min<std::chrono::nanoseconds>(*timeout, std::chrono::hours(24 * 365 * 100));
  }
  std::optional<std::chrono::nanoseconds> left() const {
    if (!end_) return {};
    return std::max<std::chrono::nanoseconds>(*end_ - Clock::now(), std::chrono::nanoseconds::zero());
  }

 private:
  using Clock = std::chrono::steady_clock;
  std::optional<Clock::time_point> end_;
};

}  // namespace bulkhead::detail
