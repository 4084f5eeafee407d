// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/detail/config.hpp>

#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace bulkhead {

/// The name of one spawned task, unlike that of any other in any program: 128 random bits.
class BULKHEAD_EXPORT TaskId {
 public:
  /// No task.
  constexpr TaskId() noexcept = default;
  constexpr TaskId(std::uint64_t high, std::uint64_t low) noexcept : high_(high), low_(low) {}
  /// A new one, from the kernel's random numbers.
  static TaskId make();
  /// From what `to_string` gave, or a UUID's text; throws `std::invalid_argument` for anything else.
  static TaskId parse(std::string_view text);

  /// 32 hexadecimal digits.
  std::string to_string() const;
  constexpr bool empty() const noexcept { return (high_ | low_) == 0; }
  constexpr std::uint64_t high() const noexcept { return high_; }
  constexpr std::uint64_t low() const noexcept { return low_; }
  constexpr auto operator<=>(const TaskId&) const noexcept = default;

 private:
  std::uint64_t high_ = 0;
  std::uint64_t low_ = 0;
};

/// Where a spawned task is.
enum class TaskStatus : std::uint8_t {
  queued,     ///< It has not begun.
  running,    ///< It runs.
  retrying,   ///< A run failed, and it waits for the next.
  succeeded,  ///< Its function returned.
  failed,     ///< It threw, its worker died, it was refused, or a value could not be carried.
  cancelled,  ///< It was cancelled.
  timed_out   ///< One of its time limits passed.
};

/// Whether it is over.
constexpr bool is_over(TaskStatus status) noexcept { return status >= TaskStatus::succeeded; }

/// `queued`, `timed out` and so on.
BULKHEAD_EXPORT std::string_view to_string(TaskStatus status) noexcept;

}  // namespace bulkhead

template <>
struct std::hash<bulkhead::TaskId> {
  std::size_t operator()(const bulkhead::TaskId& id) const noexcept {
    return static_cast<std::size_t>(id.high() ^ id.low());  // random bits already
  }
};
