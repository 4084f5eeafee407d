// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/detail/intrusive_list.hpp>
#include <bulkhead/detail/queued_task.hpp>

#include <cstddef>
#include <cstdint>
#include <map>

namespace bulkhead::detail {

/// Tasks that wait for a place to run: the lower priority number first, and within one in the order in which they came
/// for the first time. Does not own them. Not thread-safe.
class TaskQueue {
 public:
  /// A task that was here before gets its old place again.
  void enqueue(QueuedTask& task);
  /// Gives the task its place among those of its priority, if it has none yet; `enqueue` does it, too.
  void number(QueuedTask& task) noexcept {
    if (task.order == 0) task.order = ++last_order_;
  }
  void remove(QueuedTask& task);
  /// The one whose turn it is; null if there is none.
  QueuedTask* front();
  const QueuedTask* front() const;
  std::size_t size() const noexcept { return size_; }

 private:
  using Level = IntrusiveList<QueuedTask, ListLink>;

  std::map<int, Level> levels_;
  std::size_t size_ = 0;
  std::uint64_t last_order_ = 0;
};

}  // namespace bulkhead::detail
