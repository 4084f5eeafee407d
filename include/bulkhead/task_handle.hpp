// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/detail/config.hpp>
#include <bulkhead/detail/task_record.hpp>
#include <bulkhead/task_id.hpp>
#include <bulkhead/task_info.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/cancellation_type.hpp>

#include <chrono>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

namespace bulkhead {

/// A task that was spawned: it runs whether or not anybody waits. Copyable; dropping a handle drops nothing.
///
/// Thread safety: shared objects: safe. A handle may outlive its executor, and the Asio context of that; a task whose
/// context was destroyed fails with `TaskAbandonedError`.
template <class R>
class TaskHandle {
 public:
  using Duration = std::chrono::nanoseconds;
  using result_type = R;

  /// No task: all that can be asked of it is whether it is `empty`; anything else throws `std::logic_error`.
  TaskHandle() noexcept = default;
  bool empty() const noexcept { return record_ == nullptr; }

  /// The task's id, by which `wait_for_result` and `get_result` find its result.
  const TaskId& id() const { return record().id(); }
  /// The name that was given to the task; empty if it has none.
  const std::string& name() const { return record().name(); }
  /// Where the task is now. Of a task in a worker process as far as the worker has told.
  TaskStatus status() const { return record().status(); }
  /// That and what else is known of it.
  TaskInfo info() const { return record().info(); }

  /// Asks for the task's end, as a cancellation slot does: of a task that has not begun every type, of one that runs
  /// `partial` to have it asked to stop, and `terminal` to have it ended. Does nothing once it is over.
  void cancel(asio::cancellation_type type = asio::cancellation_type::terminal) const { record().cancel(type); }

  /// What the task returned, or throws what it threw. May be awaited often and by many; a result that can only be moved
  /// goes to the first of them, and the others get a `std::logic_error`.
  ///
  /// Resumes: on the awaiting coroutine's executor. Cancellation: terminal ends the waiting, not the task.
  /// Errors: `TaskTimeoutError` (`Which::wait`) after `timeout`; the task goes on.
  asio::awaitable<R> result(std::optional<Duration> timeout = std::nullopt) const {
    record();
    return detail::await_result<R>(record_, timeout);
  }

  /// For the library.
  explicit TaskHandle(std::shared_ptr<detail::TaskRecord> record) noexcept : record_(std::move(record)) {}

 private:
  detail::TaskRecord& record() const {
    if (!record_) throw std::logic_error("bulkhead: this TaskHandle is of no task");
    return *record_;
  }

  std::shared_ptr<detail::TaskRecord> record_;
};

}  // namespace bulkhead
