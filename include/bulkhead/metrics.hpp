// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/detail/config.hpp>

#include <fmt/core.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace bulkhead {

/// What an executor has done and is doing, at one instant. Always:
/// `submitted == completed + failed + cancelled + timed_out + pending + running`.
struct Metrics {
  /// The executor's name.
  std::string name;
  /// How it runs tasks: "process", "bypass", "thread", "io", "inline", "hybrid", or what a custom executor says.
  std::string mode;
  /// Worker processes or threads that are alive (those that are starting included). A hybrid has none of its own.
  std::size_t workers = 0;
  /// Accepted tasks that have not begun.
  std::size_t pending = 0;
  /// Tasks that run now.
  std::size_t running = 0;
  /// Tasks that have their outcome and still hold their place: their caller has been told, and the run goes on, or the
  /// worker is not free yet. Not among `running`, but they count towards `max_pending`.
  std::size_t lingering = 0;
  /// Submits that wait for admission under `OverloadPolicy::wait`; they are not yet submitted.
  std::size_t waiting = 0;
  /// Tasks of `submit_at` and `submit_after` whose time has not come, and schedules of `submit_every` that go on. They
  /// are not submitted yet, and no limit holds for them.
  std::size_t scheduled = 0;
  /// The limit of `pending + running + lingering`.
  std::size_t max_pending = 0;
  /// Tasks accepted, and those that were cancelled while they waited for admission.
  std::uint64_t submitted = 0;
  /// Tasks that returned.
  std::uint64_t completed = 0;
  /// Tasks that ended with an error: their own exception, a crash of their worker, a value that could not be carried.
  std::uint64_t failed = 0;
  /// Submits refused: the executor was full or not running. Not among `submitted`.
  std::uint64_t rejected = 0;
  /// Tasks cancelled by their caller or by `shutdown`.
  std::uint64_t cancelled = 0;
  /// Tasks that ended by their `timeout` or `queue_timeout`.
  std::uint64_t timed_out = 0;
  /// Workers ever started.
  std::uint64_t workers_started = 0;
  /// Workers that died without having been told to.
  std::uint64_t workers_crashed = 0;
  /// Workers that were replaced or let go: after `max_tasks_per_worker`, over `max_worker_memory`, or idle for too
  /// long.
  std::uint64_t workers_recycled = 0;
  /// Workers that were killed and are not dead yet.
  std::size_t workers_dying = 0;
  /// Runs after a failed one, as the tasks' retry policies asked for.
  std::uint64_t retried = 0;
  /// Tasks refused since their key had crashed too many workers, at submit (then they are among `rejected`) or when
  /// their turn came (then among `failed`).
  std::uint64_t quarantined = 0;
  /// Tasks whose run has ended, the number behind the two totals.
  std::uint64_t runs = 0;
  /// Time that tasks spent running, in all.
  std::chrono::nanoseconds total_run_time{0};
  /// Time that tasks spent between `submit` and the start of their run, in all.
  std::chrono::nanoseconds total_queue_wait{0};
  /// `total_run_time / runs`; zero before the first run.
  std::chrono::nanoseconds average_run_time{0};
  /// `total_queue_wait / runs`; zero before the first run.
  std::chrono::nanoseconds average_queue_wait{0};
};

/// One JSON object with every field; times in milliseconds (`average_run_ms`) and totals in seconds.
BULKHEAD_EXPORT std::string to_json(const Metrics& metrics);

/// Prometheus' text exposition format 0.0.4 of one executor. For several use the overload: a page may name each
/// metric's HELP and TYPE only once.
BULKHEAD_EXPORT std::string to_prometheus(const Metrics& metrics);
BULKHEAD_EXPORT std::string to_prometheus(std::span<const Metrics> metrics);

/// One line for logs: `default (process): 2 workers, 0 pending, 1 running, ...`.
BULKHEAD_EXPORT std::string to_string(const Metrics& metrics);

}  // namespace bulkhead

template <>
struct fmt::formatter<bulkhead::Metrics> : fmt::formatter<std::string> {
  template <class FormatContext>
  auto format(const bulkhead::Metrics& metrics, FormatContext& context) const {
    return fmt::formatter<std::string>::format(bulkhead::to_string(metrics), context);
  }
};
