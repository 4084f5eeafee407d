// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/progress.hpp>
#include <bulkhead/task_id.hpp>

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

namespace bulkhead {

/// What is known of a spawned task at one instant: `TaskHandle::info`, `BaseExecutor::info`, `ResultStore::list`. Of a
/// task in a worker process as far as the worker has told.
struct TaskInfo {
  TaskId id;
  /// Its number within its executor, as in events, in errors, and as `this_task::id`; 0 while its time has not come.
  std::uint64_t number = 0;
  /// `TaskOptions::name`; empty if it has none.
  std::string name;
  /// `TaskOptions::metadata`; empty if it has none.
  std::string metadata;
  /// The executor's name.
  std::string executor;
  TaskStatus status = TaskStatus::queued;
  /// The number of the run that is under way or was the last, from 1.
  unsigned attempt = 1;
  /// When it was spawned.
  std::chrono::system_clock::time_point spawned;
  /// When that run began; empty if none has, or if nobody has seen it.
  std::optional<std::chrono::system_clock::time_point> started;
  /// When it was over.
  std::optional<std::chrono::system_clock::time_point> ended;
  /// The last progress that it has told.
  std::optional<Progress> progress;
};

}  // namespace bulkhead
