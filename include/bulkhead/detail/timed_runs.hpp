// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/detail/config.hpp>
#include <bulkhead/schedule.hpp>

#include <chrono>
#include <exception>
#include <functional>
#include <memory>
#include <variant>

namespace bulkhead::detail {

class ExecutorCore;
class TaskRecord;

using StartTime = std::variant<std::chrono::steady_clock::time_point, std::chrono::system_clock::time_point>;

// Calls `start` at that time, on the executor's Asio executor, unless the task is cancelled or the executor ends
// before: then the record has its outcome from here.
BULKHEAD_EXPORT void start_at(const std::shared_ptr<ExecutorCore>& core, StartTime time,
                              const std::shared_ptr<TaskRecord>& record, std::function<void()> start);

// Called with null when a run has returned, or with what it failed with; also of one that goes on beyond a limit.
using RunOutcome = std::function<void(const std::exception_ptr&)>;
// Begins a run, which is under way for as long as anybody holds the second.
using StartRun = std::function<void(RunOutcome, std::shared_ptr<void> under_way)>;

// Calls `start` for each run.
BULKHEAD_EXPORT Schedule start_every(const std::shared_ptr<ExecutorCore>& core, std::chrono::nanoseconds period,
                                     ScheduleOptions options, StartRun start);

}  // namespace bulkhead::detail
