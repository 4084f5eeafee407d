// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/detail/config.hpp>

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <utility>

namespace bulkhead {

/// How one task is to be run: `TaskOptions().name("thumbnail").priority(1).timeout(2s)`.
///
/// A class with chained setters and not an aggregate, since g++ 12 destroys brace-initialised temporaries inside a
/// `co_await` expression twice (GCC PR 107288). Setters check their argument and throw `std::invalid_argument`.
class BULKHEAD_EXPORT TaskOptions {
 public:
  using Duration = std::chrono::nanoseconds;

  // Inline, since every task's options are moved several times on their way.
  TaskOptions() noexcept = default;
  TaskOptions(TaskOptions&&) noexcept = default;
  TaskOptions& operator=(TaskOptions&&) noexcept = default;
  TaskOptions(const TaskOptions& other);
  TaskOptions& operator=(const TaskOptions& other);
  ~TaskOptions() = default;

  /// The name that errors show; by default the function's, as the program's symbols have it, else its type. 1 to 200
  /// characters.
  TaskOptions& name(std::string value) &;
  TaskOptions&& name(std::string value) && { return std::move(name(std::move(value))); }
  /// The lower number runs first, tasks of the same number in the order of their submission. Default 0.
  TaskOptions& priority(int value) & noexcept;
  TaskOptions&& priority(int value) && noexcept { return std::move(priority(value)); }
  /// The longest time the task may run, from the start of its run; then its worker is killed and the task fails with
  /// `TaskTimeoutError`. More than zero. Default: no limit.
  TaskOptions& timeout(Duration value) &;
  TaskOptions&& timeout(Duration value) && { return std::move(timeout(value)); }
  /// The longest time from `submit` to the start of the run; then the task fails without having run:
  /// with `ExecutorOverloadError` while it waits for admission, with `TaskTimeoutError` later. More than zero.
  /// Default: no limit.
  TaskOptions& queue_timeout(Duration value) &;
  TaskOptions&& queue_timeout(Duration value) && { return std::move(queue_timeout(value)); }

  /// Empty if none was given.
  const std::string& name() const noexcept;
  int priority() const noexcept { return priority_; }
  std::optional<Duration> timeout() const noexcept { return given(timeout_); }
  std::optional<Duration> queue_timeout() const noexcept { return given(queue_timeout_); }

 private:
  static std::optional<Duration> given(Duration value) noexcept {
    return value == Duration::zero() ? std::nullopt : std::optional(value);
  }

  // A pointer moves faster than a string, and most tasks have no name of their own.
  std::unique_ptr<const std::string> name_;
  Duration timeout_{0};        // 0: none
  Duration queue_timeout_{0};  // 0: none
  int priority_ = 0;
};

}  // namespace bulkhead
