// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "process/shared_area.hpp"
#include "task_queue.hpp"

#include <bulkhead/detail/executor_core.hpp>
#include <bulkhead/detail/task_node.hpp>

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

namespace bulkhead::detail {

/// Bypass mode: runs tasks in this process, on the Asio executor, at most `max_workers` at a time. Callable, arguments,
/// result and exceptions go through the codec as on their way to a worker, so that what passes here passes there.
class Bypass : public std::enable_shared_from_this<Bypass> {
 public:
  struct Settings {
    unsigned max_workers = 1;
    std::size_t max_message_size = 0;
    std::shared_ptr<process::SharedArea> shared;  // null: there is none
    std::vector<std::byte> preload;
    std::vector<std::byte> initializer;
  };

  Bypass(std::shared_ptr<ExecutorCore> core, Settings settings);

  void execute(TaskNode* node);
  /// With the mutex: takes a task out of the queue. False: it is not there.
  bool withdraw(TaskNode& node);
  /// The executor is being destroyed: what has not begun is cancelled.
  void close();

 private:
  void run_next();
  void run(TaskNode* node);
  bool start_calls(std::string& reason);
  std::vector<std::byte> encode(TaskNode& node) const;

  const std::shared_ptr<ExecutorCore> core_;
  const Settings settings_;

  // Guarded by core_->mutex.
  TaskQueue queue_;
  unsigned active_ = 0;
  bool closed_ = false;

  std::mutex start_mutex_;
  bool started_ = false;
};

/// The value of BULKHEAD_EXECUTOR_BYPASS: `1`, `true`, `yes` and `on` in any case mean yes.
bool bypass_by_environment();

}  // namespace bulkhead::detail
