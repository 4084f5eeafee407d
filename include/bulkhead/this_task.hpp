// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/detail/config.hpp>

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

/// What a function may ask and tell while it runs as a task, in a worker process or in the host's own. In a worker it
/// holds for all threads that the task starts; in the host for the thread, or the coroutine, that runs the task. Called
/// elsewhere, nothing is known, nobody asks to stop, and what is told is dropped: a function that uses it can be called
/// as any other.
///
/// Thread safety: safe. Nothing blocks. What a call costs: some nanoseconds, but for those that return strings.
namespace bulkhead::this_task {

/// Whether the caller runs as a task.
BULKHEAD_EXPORT bool is_running() noexcept;
/// The task's number within its executor, as in errors; 0 outside of a task.
BULKHEAD_EXPORT std::uint64_t id() noexcept;
/// `TaskOptions::name`, or else the function's name or type.
BULKHEAD_EXPORT std::string name();
/// The executor's name.
BULKHEAD_EXPORT std::string executor_name();
/// The number of this run, from 1; more than 1 for one that `TaskOptions::retry` asked for. 0 outside of a task.
BULKHEAD_EXPORT unsigned attempt() noexcept;
/// When the task's `timeout` ends its run; empty if it has none.
BULKHEAD_EXPORT std::optional<std::chrono::steady_clock::time_point> deadline() noexcept;
/// `TaskOptions::trace_parent`; empty if there is none.
BULKHEAD_EXPORT std::string trace_parent();

/// Whether the caller of the task has asked it to stop: poll it in long loops. After a terminal cancellation the worker
/// is killed when `LocalExecutorOptions::cancel_grace` is over. What the function returns or throws until then is what
/// its caller gets.
BULKHEAD_EXPORT bool stop_requested() noexcept;

/// Ends the task if it has been asked to stop: throws what its caller gets as `TaskCancelledError`. Let it pass.
BULKHEAD_EXPORT void throw_if_stop_requested();

/// Tells how far the task has come. `TaskOptions::on_progress` gets it, the latest at most every 50 ms and the last in
/// any case; the error of a crash has the last one, too. `total` 0: not known. Of `text` at most 200 bytes are kept.
BULKHEAD_EXPORT void report_progress(std::uint64_t done, std::uint64_t total, std::string_view text = {}) noexcept;

}  // namespace bulkhead::this_task
