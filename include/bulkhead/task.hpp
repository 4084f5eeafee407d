// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/detail/config.hpp>
#include <bulkhead/detail/task_node.hpp>
#include <bulkhead/task_options.hpp>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace bulkhead {

/// One task, as an executor gets it in `BaseExecutor::execute`. Exactly one of `run`, `complete` and `fail` gives it
/// its outcome; a task destroyed without one fails with `TaskAbandonedError`, so that nothing is lost in silence.
///
/// Move-only. Thread safety: one thread at a time, any thread.
class BULKHEAD_EXPORT Task {
 public:
  Task(Task&& other) noexcept : node_(std::exchange(other.node_, nullptr)) {}
  Task& operator=(Task&& other) noexcept;
  ~Task();

  /// Calls the function here and now, on this thread, and hands its result or exception to the caller. Does nothing
  /// but release the task if it has been cancelled meanwhile.
  void run();

  /// Tells that a task which was sent elsewhere has begun there: its `timeout` counts from here, and it counts as
  /// running. `run` does it by itself.
  void started();

  /// Writes the call into `buffer`, for `run_encoded_task` in another process that is a copy of this one. Returns the
  /// bytes needed; if they are more than `buffer` has, call it again with a larger one.
  /// Throws `SerializationError` if callable, arguments or result cannot be carried, `FunctionUnavailableError` if the
  /// function is not known there. The task stays as it is: pass the error to `fail`.
  std::size_t encode(std::span<std::byte> buffer);

  /// Hands over the answer that `run_encoded_task` gave. Bytes that make no sense fail the task with
  /// `SerializationError`.
  void complete(std::span<const std::byte> answer);

  /// Hands this error to the caller.
  void fail(std::exception_ptr error);

  /// `TaskOptions::name`, or else the function's name or type.
  std::string name() const;
  /// The options it was submitted with.
  const TaskOptions& options() const noexcept;
  /// Its number within its executor, from 1.
  std::uint64_t id() const noexcept;

 private:
  friend class detail::ExecutorCore;
  friend struct TaskAccess;
  explicit Task(detail::TaskNode* node) noexcept : node_(node) {}

  detail::TaskNode* node_;
};

/// Runs a call that `Task::encode` wrote, in this process, and returns the answer for `Task::complete`. What the
/// function throws is part of the answer. `request` must be from a trusted source: it names the code that runs.
BULKHEAD_EXPORT std::vector<std::byte> run_encoded_task(std::span<const std::byte> request);

/// For executors of this library: puts a node into its handle and takes it out.
struct TaskAccess {
  static Task wrap(detail::TaskNode* node) noexcept { return Task(node); }
  static detail::TaskNode* release(Task& task) noexcept { return std::exchange(task.node_, nullptr); }
};

}  // namespace bulkhead
