// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/retry_policy.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace bulkhead {
namespace {

// More was meant as "for ever", which would keep a task that cannot succeed until the program ends.
constexpr unsigned kMostAttempts = 1000;

// Beyond it the second pause is the longest one already.
constexpr double kLargestFactor = 1000;

}  // namespace

RetryPolicy::RetryPolicy(unsigned attempts) : attempts_(attempts) {
  if (attempts == 0 || attempts > kMostAttempts) {
    throw std::invalid_argument(
        fmt::format("RetryPolicy: attempts must be 1 to {}, the first included, not {}", kMostAttempts, attempts));
  }
}

RetryPolicy& RetryPolicy::only_on(RetryOn kinds) & {
  constexpr auto kAll = static_cast<std::uint8_t>(RetryOn::exception | RetryOn::crash | RetryOn::timeout);
  const auto bits = static_cast<std::uint8_t>(kinds);
  if (bits == 0 || (bits & ~kAll) != 0) {
    throw std::invalid_argument("RetryPolicy::only_on must name at least one of RetryOn::exception, crash and timeout");
  }
  kinds_ = kinds;
  return *this;
}

RetryPolicy& RetryPolicy::when(Predicate predicate) & {
  predicate_ = std::move(predicate);
  return *this;
}

RetryPolicy& RetryPolicy::delay(Duration value) & {
  if (value < Duration::zero()) {
    throw std::invalid_argument(fmt::format("RetryPolicy::delay must not be negative, and is {} ns", value.count()));
  }
  delay_ = value;
  return *this;
}

RetryPolicy& RetryPolicy::backoff(double factor, Duration longest) & {
  if (!(factor >= 1 && factor <= kLargestFactor)) {
    throw std::invalid_argument(
        fmt::format("RetryPolicy::backoff: factor must be 1 to {}, not {}", kLargestFactor, factor));
  }
  if (longest <= Duration::zero()) {
    throw std::invalid_argument(
        fmt::format("RetryPolicy::backoff: the longest pause must be more than zero, not {} ns", longest.count()));
  }
  factor_ = factor;
  longest_ = longest;
  return *this;
}

RetryPolicy& RetryPolicy::jitter(double part) & {
  if (!(part >= 0 && part <= 1)) {
    throw std::invalid_argument(fmt::format("RetryPolicy::jitter must be 0 to 1, not {}", part));
  }
  jitter_ = part;
  return *this;
}

RetryPolicy::Duration RetryPolicy::pause_after(unsigned failed_runs, double random) const noexcept {
  const auto longest = static_cast<double>(std::max(longest_, delay_).count());
  const double grown = static_cast<double>(delay_.count()) * std::pow(factor_, failed_runs - 1);
  const double pause = std::min(grown, longest) * (1 + jitter_ * (2 * random - 1));
  // 2^62 ns are 146 years, and fit.
  constexpr double kMost = 4.6e18;
  return Duration(static_cast<Duration::rep>(std::min(pause, kMost)));
}

}  // namespace bulkhead
