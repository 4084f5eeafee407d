// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>

namespace bulkhead::detail {

// How many items of a `map` to put into one task, learned from how long they take. Plain arithmetic, and no clock.
class ChunkPlanner {
 public:
  // What a task costs beside its function is 0.3 µs where others follow it closely, and some 10 µs where both sides go
  // to sleep: little beside this. And it is little to lose: what the rest of a chunk has done is done again when an
  // item of it crashes.
  static constexpr std::chrono::nanoseconds kChunkTime = std::chrono::microseconds(50);

  // `fixed`: always so many; 0: 1 to `largest`.
  ChunkPlanner(std::size_t fixed, std::size_t largest) noexcept
      : fixed_(fixed), largest_(std::max<std::size_t>(largest, 1)) {}

  std::size_t next() const noexcept { return fixed_ != 0 ? fixed_ : size_; }

  // A task with so many items took so long.
  void ran(std::size_t items, std::chrono::nanoseconds time) noexcept {
    if (items == 0) return;
    // The time is a worker's word: neither zero nor an age may do harm.
    const double each = std::max(1.0, static_cast<double>(time.count()) / static_cast<double>(items));
    // A moving average over about four tasks, for items that differ.
    each_ns_ = each_ns_ == 0 ? each : each_ns_ + (each - each_ns_) / 4;
    const double fitting = static_cast<double>(kChunkTime.count()) / each_ns_;
    // Not more than twice as many at once: the first items may be quicker than others.
    const std::size_t most = std::min(largest_, 2 * size_);
    size_ = fitting >= static_cast<double>(most) ? most : std::max<std::size_t>(1, static_cast<std::size_t>(fitting));
  }

 private:
  const std::size_t fixed_;
  const std::size_t largest_;
  std::size_t size_ = 1;
  double each_ns_ = 0;
};

}  // namespace bulkhead::detail
