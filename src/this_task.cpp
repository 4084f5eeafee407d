// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/this_task.hpp>

#include <bulkhead/detail/task_context.hpp>

#include <atomic>
#include <utility>

namespace bulkhead {
namespace detail {
namespace {

thread_local TaskContext* of_thread = nullptr;
std::atomic<TaskContext*> of_process{nullptr};

TaskContext* current() noexcept {
  return of_thread != nullptr ? of_thread : of_process.load(std::memory_order_relaxed);
}

}  // namespace

RunningTask::RunningTask(TaskContext& context, Scope scope) noexcept
    : outer_(scope == Scope::thread ? std::exchange(of_thread, &context)
                                    : of_process.exchange(&context, std::memory_order_relaxed)),
      scope_(scope) {}

RunningTask::~RunningTask() {
  if (scope_ == Scope::thread) {
    of_thread = outer_;
  } else {
    of_process.store(outer_, std::memory_order_relaxed);
  }
}

void note_function(std::string (*name)(const void* function), const void* function) noexcept {
  TaskContext* const context = current();
  if (context == nullptr || context->default_name != nullptr) return;
  context->default_name = name;
  context->named = function;
}

void note_item(std::uint32_t item) noexcept {
  const TaskContext* const context = current();
  if (context != nullptr && context->item != nullptr) context->item->store(item, std::memory_order_relaxed);
}

std::size_t most_result_bytes() noexcept {
  const TaskContext* const context = current();
  return context != nullptr ? context->max_result : 0;
}

}  // namespace detail

namespace this_task {

using detail::current;
using detail::TaskContext;

bool is_running() noexcept { return current() != nullptr; }

std::uint64_t id() noexcept {
  const TaskContext* const context = current();
  return context != nullptr ? context->id : 0;
}

std::string name() {
  const TaskContext* const context = current();
  if (context == nullptr) return {};
  if (!context->name.empty() || context->default_name == nullptr) return std::string(context->name);
  return context->default_name(context->named);
}

std::string executor_name() {
  const TaskContext* const context = current();
  return context != nullptr ? std::string(context->executor) : std::string();
}

unsigned attempt() noexcept {
  const TaskContext* const context = current();
  return context != nullptr ? context->attempt : 0;
}

std::optional<std::chrono::steady_clock::time_point> deadline() noexcept {
  const TaskContext* const context = current();
  if (context == nullptr || context->deadline_ns == 0) return std::nullopt;
  return std::chrono::steady_clock::time_point(std::chrono::nanoseconds(context->deadline_ns));
}

std::string trace_parent() {
  const TaskContext* const context = current();
  return context != nullptr ? std::string(context->trace_parent) : std::string();
}

bool stop_requested() noexcept {
  const TaskContext* const context = current();
  return context != nullptr && context->stop != nullptr && context->stop->load(std::memory_order_acquire) != 0;
}

void throw_if_stop_requested() {
  if (stop_requested()) throw detail::StopRequested();
}

void report_progress(std::uint64_t done, std::uint64_t total, std::string_view text) noexcept {
  const TaskContext* const context = current();
  if (context != nullptr && context->report != nullptr) context->report(context->report_to, done, total, text);
}

}  // namespace this_task
}  // namespace bulkhead
