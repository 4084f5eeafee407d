// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/detail/task_context.hpp>
#include <bulkhead/detail/task_node.hpp>
#include <bulkhead/progress.hpp>

#include <cstdint>
#include <optional>
#include <string_view>

namespace bulkhead::detail {

/// How often a caller is told of progress: a progress bar that moves 20 times a second looks smooth.
inline constexpr std::uint64_t kProgressInterval = 50'000'000;  // ns

/// While it lives, the calling thread runs this task, in the host: `this_task` knows it. Make it once the task has
/// begun; at its end the caller has the last progress.
class RunHere {
 public:
  explicit RunHere(TaskNode& node);
  ~RunHere();
  RunHere(const RunHere&) = delete;
  RunHere& operator=(const RunHere&) = delete;

  /// Calls the function; its result or error is in the node.
  Outcome call();

 private:
  void report(Progress progress);
  void pass_on(Progress&& progress);

  TaskNode& node_;
  TaskContext context_;
  std::optional<RunningTask> running_;
  std::uint64_t passed_on_ns_ = 0;
  std::optional<Progress> held_back_;
};

}  // namespace bulkhead::detail
