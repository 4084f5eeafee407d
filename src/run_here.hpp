// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/detail/task_context.hpp>
#include <bulkhead/detail/task_node.hpp>
#include <bulkhead/progress.hpp>

#include <cstdint>
#include <mutex>
#include <optional>
#include <string_view>

namespace bulkhead::detail {

/// How often a caller is told of progress: a progress bar that moves 20 times a second looks smooth.
inline constexpr std::uint64_t kProgressInterval = 50'000'000;  // ns

/// What `this_task` knows of a task that runs in this process, and where its progress goes. Make it once the task has
/// begun.
class HostTaskContext {
 public:
  explicit HostTaskContext(TaskNode& node);
  ~HostTaskContext() { finish(); }
  HostTaskContext(const HostTaskContext&) = delete;
  HostTaskContext& operator=(const HostTaskContext&) = delete;

  TaskContext& context() noexcept { return context_; }

  /// The task is over: its caller gets the last progress, and nothing is known of it any more. What a coroutine has
  /// left behind may still ask.
  void finish();

 private:
  void report(Progress progress);
  void pass_on(Progress&& progress);

  TaskNode* node_;
  TaskContext context_;
  std::mutex mutex_;  // threads of the task's own may report, too
  std::uint64_t passed_on_ns_ = 0;
  std::optional<Progress> held_back_;
};

/// While it lives, the calling thread runs this task, in the host: `this_task` knows it.
class RunHere {
 public:
  explicit RunHere(TaskNode& node) : host_(node) { running_.emplace(host_.context(), RunningTask::Scope::thread); }

 private:
  HostTaskContext host_;
  std::optional<RunningTask> running_;
};

/// Has the CPU time of this thread count for the task from now on, if it is limited.
void measure_cpu_time(TaskNode& node) noexcept;

}  // namespace bulkhead::detail
