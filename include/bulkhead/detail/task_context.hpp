// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/detail/config.hpp>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

namespace bulkhead::detail {

// What a running task knows of itself; `this_task` reads it.
struct TaskContext {
  std::uint64_t id = 0;
  unsigned attempt = 1;
  std::uint64_t deadline_ns = 0;  // steady clock; 0: none
  const std::atomic<std::uint32_t>* stop = nullptr;
  std::string_view name;  // empty: `default_name(named)`
  std::string_view executor;
  std::string_view trace_parent;
  std::string (*default_name)(const void* named) = nullptr;
  const void* named = nullptr;
  void (*report)(void* to, std::uint64_t done, std::uint64_t total, std::string_view text) = nullptr;
  void* report_to = nullptr;
  std::atomic<std::uint32_t>* item = nullptr;  // which of a chunk's items runs, for who looks at it from outside
  std::size_t max_result = 0;                  // bytes of its encoded result; 0: it is not encoded
};

// A limit of centuries is none, and must not wrap around.
inline std::uint64_t deadline_after(std::uint64_t time, std::chrono::nanoseconds limit) noexcept {
  const auto span = static_cast<std::uint64_t>(limit.count());
  return span > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()) - time ? 0 : time + span;
}

// The earlier of two deadlines, each of which may be 0: none.
inline std::uint64_t earlier_deadline(std::uint64_t one, std::uint64_t other) noexcept {
  if (one == 0 || other == 0) return one + other;
  return one < other ? one : other;
}

// While it lives, the calling thread runs this task; in a worker, where no other runs, the whole process does.
class BULKHEAD_EXPORT RunningTask {
 public:
  enum class Scope : std::uint8_t { thread, process };
  RunningTask(TaskContext& context, Scope scope) noexcept;
  ~RunningTask();
  RunningTask(const RunningTask&) = delete;
  RunningTask& operator=(const RunningTask&) = delete;

 private:
  TaskContext* outer_;
  Scope scope_;
};

// The function that the running task calls, for its default name.
BULKHEAD_EXPORT void note_function(std::string (*name)(const void* function), const void* function) noexcept;

// The running task goes on with this one of its items.
BULKHEAD_EXPORT void note_item(std::uint32_t item) noexcept;

// `TaskContext::max_result` of the running task.
BULKHEAD_EXPORT std::size_t most_result_bytes() noexcept;

// What `throw_if_stop_requested` throws on its way to `run_encoded` or `TaskNode::run`. Not a std::exception: who
// handles those does not mean this.
struct StopRequested {};

}  // namespace bulkhead::detail
