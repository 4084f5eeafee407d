// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/detail/config.hpp>

#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <utility>

namespace bulkhead {

/// What a failed run may have been; combine with `|`.
enum class RetryOn : std::uint8_t {
  exception = 1,  ///< The function threw.
  crash = 2,      ///< Its worker died, or wrote something impossible.
  timeout = 4     ///< It ran longer than its `timeout` or `cpu_timeout`.
};
constexpr RetryOn operator|(RetryOn a, RetryOn b) noexcept {
  return static_cast<RetryOn>(static_cast<std::uint8_t>(a) | static_cast<std::uint8_t>(b));
}

/// Whether, when and how often a task that failed is run again:
/// `RetryPolicy(3).only_on(RetryOn::crash).delay(100ms).backoff(2, 5s).jitter(0.2)`.
///
/// A task may have had effects before it failed: only retry what may run twice. What never began is run elsewhere
/// without any policy. A task that waits for its next run holds no worker and no thread, and keeps its one place among
/// `max_pending`. Tasks that were cancelled, refused, or could not be sent are not retried, and none is once the
/// executor shuts down.
class BULKHEAD_EXPORT RetryPolicy {
 public:
  using Duration = std::chrono::nanoseconds;
  using Predicate = std::function<bool(const std::exception_ptr&)>;

  /// Runs the task `attempts` times at most, the first included: 1 to 1000. By default after failures of every kind, at
  /// once. Throws `std::invalid_argument`, as all setters do.
  explicit RetryPolicy(unsigned attempts);

  /// Only after failures of these kinds.
  RetryPolicy& only_on(RetryOn kinds) &;
  RetryPolicy&& only_on(RetryOn kinds) && { return std::move(only_on(kinds)); }
  /// Of what the function threw, only if this says so. Called without any lock, on a thread of the Asio context;
  /// what it throws becomes the task's error.
  RetryPolicy& when(Predicate predicate) &;
  RetryPolicy&& when(Predicate predicate) && { return std::move(when(std::move(predicate))); }
  /// The pause before the second run. Not negative.
  RetryPolicy& delay(Duration value) &;
  RetryPolicy&& delay(Duration value) && { return std::move(delay(value)); }
  /// Each further pause is `factor` times the one before, at most `longest`. `factor`: 1 to 1000.
  RetryPolicy& backoff(double factor, Duration longest = std::chrono::minutes(1)) &;
  RetryPolicy&& backoff(double factor, Duration longest = std::chrono::minutes(1)) && {
    return std::move(backoff(factor, longest));
  }
  /// Each pause is made shorter or longer by up to this part of it, at random, so that tasks that failed together do
  /// not come back together: 0 to 1.
  RetryPolicy& jitter(double part) &;
  RetryPolicy&& jitter(double part) && { return std::move(jitter(part)); }

  unsigned attempts() const noexcept { return attempts_; }
  bool covers(RetryOn kind) const noexcept {
    return (static_cast<std::uint8_t>(kinds_) & static_cast<std::uint8_t>(kind)) != 0;
  }
  const Predicate& predicate() const noexcept { return predicate_; }
  /// The pause after the given number of failed runs; `random` is from [0, 1) and decides about the jitter.
  Duration pause_after(unsigned failed_runs, double random) const noexcept;

 private:
  unsigned attempts_;
  RetryOn kinds_ = RetryOn::exception | RetryOn::crash | RetryOn::timeout;
  Predicate predicate_;
  Duration delay_{0};
  Duration longest_ = std::chrono::minutes(1);
  double factor_ = 1;
  double jitter_ = 0;
};

}  // namespace bulkhead
