// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/detail/config.hpp>
#include <bulkhead/task_id.hpp>
#include <bulkhead/task_info.hpp>

#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <vector>

namespace bulkhead {

namespace detail {
class TaskRecord;
}

/// Limits of a ResultStore. What is over one of them goes, the oldest first.
struct ResultStoreOptions {
  /// Results that are kept. At least 1.
  std::size_t max_results = 10'000;
  /// Bytes of all results: their encoded size, or their `sizeof` where the codec cannot carry them; the tasks' names
  /// and metadata, and the texts of errors. At least 1.
  std::size_t max_bytes = std::size_t{64} << 20;
  /// How long a result is kept. More than zero.
  std::chrono::nanoseconds time_to_live = std::chrono::minutes(10);
};

/// Keeps the results of spawned tasks for `BaseExecutor::get_result` and `wait_for_result`. In memory, and bounded:
/// tasks that are not over are always found, and only results are dropped. Expired results go when the store is used
/// next. Several executors may share one (`CommonOptions::results`).
///
/// Thread safety: shared objects: safe.
class BULKHEAD_EXPORT ResultStore {
 public:
  /// Throws `std::invalid_argument` naming the option.
  explicit ResultStore(ResultStoreOptions options = {});
  ~ResultStore();
  ResultStore(const ResultStore&) = delete;
  ResultStore& operator=(const ResultStore&) = delete;

  /// Results that are kept now.
  std::size_t size() const;
  /// What they count for.
  std::size_t bytes() const;
  /// Tasks that are not over.
  std::size_t unfinished() const;
  /// What is known of the tasks, the newest first: all, or those of one status; at most so many.
  std::vector<TaskInfo> list(std::optional<TaskStatus> status = std::nullopt, std::size_t limit = 1000) const;
  /// Drops a result. False if there is none of this id, or its task is not over.
  bool remove(const TaskId& id);
  /// Drops all results; returns how many.
  std::size_t clear();

  // For the library.
  /// False if there is one of the same id.
  bool add(const std::shared_ptr<detail::TaskRecord>& record);
  void finished(const TaskId& id, std::size_t bytes);
  std::shared_ptr<detail::TaskRecord> find(const TaskId& id) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace bulkhead
