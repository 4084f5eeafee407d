// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "background.hpp"

#include <bulkhead/detail/executor_core.hpp>
#include <bulkhead/detail/task_node.hpp>

#include <boost/asio/steady_timer.hpp>

#include <cstdint>
#include <memory_resource>
#include <set>
#include <utility>

namespace bulkhead::detail {

// What a task did whose whole time was over, if it did not run.
inline const char* not_run_reason(const TaskNode& node) noexcept {
  return node.retry_at_ns != 0 ? "it had failed, and waited for its next run"
         : node.failed_runs    ? "it had failed, and waited for its next run to begin"
                               : "it had not begun, and never ran";
}

// When the tasks of an executor are to be looked at: those that wait for admission or an instance, and those that run
// in this process. The timer belongs to the background thread, so that a limit holds though the event loop is busy.
struct ExecutorCore::Limits {
  explicit Limits(Background& background) : timer(background.context()) {}

  std::pmr::unsynchronized_pool_resource memory;
  std::pmr::set<std::pair<std::uint64_t, TaskNode*>> by_time{&memory};
  std::uint64_t set_for = 0;  // what the timer is set for, or is about to be; 0: it is not
  asio::steady_timer timer;
};

}  // namespace bulkhead::detail
