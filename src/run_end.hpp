// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/detail/executor_core.hpp>
#include <bulkhead/detail/task_node.hpp>

#include <atomic>
#include <cstdint>

namespace bulkhead::detail {

// When a run ended. Whoever runs the task notes it without the mutex, and a time limit that passes in the same moment
// may have it told.

inline void note_run_end(TaskNode& node) noexcept {
  std::atomic_ref(node.ended_ns).store(ExecutorCore::now(), std::memory_order_relaxed);
}
inline std::uint64_t run_end(const TaskNode& node) noexcept {
  return std::atomic_ref(const_cast<TaskNode&>(node).ended_ns).load(std::memory_order_relaxed);
}

}  // namespace bulkhead::detail
